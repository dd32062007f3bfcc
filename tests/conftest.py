"""For every test: one thread, since tensors are tiny and workers share the cores; no network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import torch

# A busy machine may take its time; an example is wrong when it is wrong, not when it is slow.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")
torch.set_num_threads(1)
