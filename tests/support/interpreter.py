"""Triton's interpreter: it runs the kernels on CPU tensors, milliseconds a program."""

import os
from importlib import import_module

import numpy
import pytest
import torch

from clsd_fast.backend import triton as triton_backend
from support.util import contiguous, sliced

#: It computes garbage in bfloat16.
DTYPES = (torch.float64, torch.float32, torch.float16)
LAYOUTS = (contiguous, sliced)


def import_kernels() -> str | None:
    """Import the Triton kernels for its interpreter, or say why they cannot run there.

    This comes before all tests: whatever imports Triton first decides for the process whether
    kernels are compiled or interpreted.
    """
    if triton_backend.missing is not None:
        return triton_backend.missing
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return "beside a GPU, the kernels are compiled unless TRITON_INTERPRET=1"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for op in triton_backend.OPERATORS:
            import_module(f"clsd_fast.triton.{op}")
        version = import_module("triton").__version__
    if (
        version.startswith(("3.5.", "3.6."))
        and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"
    ):
        return f"that of Triton {version} needs NumPy < 2.4, got {numpy.__version__}"
    return None


#: Why it cannot be used, if it cannot.
MISSING = import_kernels()
