"""The contrastive operators on GPUs, one module each. Importing a module needs Triton."""
