"""Kernels for one kind of accelerator, with the signature of the op that they replace; its ``implementation`` asks."""
