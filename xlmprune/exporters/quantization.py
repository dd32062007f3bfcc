"""INT8 forms that keep their languages: which matrices are quantised, how, and what stays in fp32, by measurement."""
