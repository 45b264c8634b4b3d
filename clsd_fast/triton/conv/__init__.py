"""The Triton kernels of 3x3 convolutions."""
