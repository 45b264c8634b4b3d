"""Kernels of the composed tail."""
