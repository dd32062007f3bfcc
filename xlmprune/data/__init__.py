"""Examples, the batches made from them, and the readers of every source."""
