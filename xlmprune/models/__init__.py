"""Pretrained models: loading them, and trimming their vocabulary."""
