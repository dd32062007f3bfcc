"""Load time and peak memory of packed ONNX files at the size of XLM-R base."""
