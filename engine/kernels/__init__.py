"""Kernels. `cpu/`: what the CPU runs, with PyTorch. The files here: Triton, one kernel family each, every launcher
beside its PyTorch reference of the same signature."""
