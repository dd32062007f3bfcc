"""What runs on a shipped bundle. Nothing here imports PyTorch."""
