"""Triton's interpreter: it runs the kernels on CPU tensors, milliseconds a program."""

import os
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import numpy
import pytest
import torch

from clsd_fast.backend import triton as triton_backend
from support.util import contiguous, sliced

#: It computes garbage in bfloat16.
DTYPES = (torch.float64, torch.float32, torch.float16)
LAYOUTS = (contiguous, sliced)


def replace_once(replace: Callable[[Callable], object]) -> Callable[[Callable], object]:
    """The interpreter replaces Triton's functions by its own where a kernel starts, which it undoes
    at the end, and again at every call of a function in a kernel: most of its time. Do so where
    they are not replaced."""
    language = import_module("triton.language")

    def replaced(function: Callable) -> object:
        modules = [m for m in function.__globals__.values() if m is language or m is language.core]
        if any(language.core.is_builtin(module.load) for module in modules):
            return replace(function)
        return SimpleNamespace(restore=lambda: None)

    return replaced


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
        interpreter = import_module("triton.runtime.interpreter")
        interpreter._patch_lang = replace_once(interpreter._patch_lang)
    if (
        version.startswith(("3.5.", "3.6."))
        and numpy.lib.NumpyVersion(numpy.__version__) >= "2.4.0"
    ):
        return f"that of Triton {version} needs NumPy < 2.4, got {numpy.__version__}"
    return None


#: Why it cannot be used, if it cannot.
MISSING = import_kernels()
