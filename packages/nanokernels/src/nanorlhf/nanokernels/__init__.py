"""Triton kernels for language model training and inference, each with a PyTorch reference."""
