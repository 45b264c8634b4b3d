"""The contrastive operators and the tail on GPUs, a module each. Importing one needs Triton."""
