"""What the CPU runs: PyTorch and oneDNN."""
