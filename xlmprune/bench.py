"""Latency, throughput, load time, peak memory and bytes of ONNX files side by side, so that the ratios can be trusted."""
