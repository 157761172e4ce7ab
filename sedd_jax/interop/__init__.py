"""Weights in and out: the original's PyTorch layouts, and one loader for everything."""
