import pytest
import torch
from support import interpreter

import clsd_fast
from clsd_fast.backend import triton as triton_backend


@pytest.fixture
def interpreted_triton(monkeypatch):
    """The Triton kernels on CPU tensors, interpreted, in use for the test."""
    if interpreter.MISSING is not None:
        pytest.skip(f"needs Triton's interpreter: {interpreter.MISSING}")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_backend, "devices", frozenset({"cpu"}))
    library = torch.library.Library("clsd_fast", "IMPL")
    clsd_fast.backend.register(library, "CPU", allow_override=True)
    with clsd_fast.use_backend("triton"):
        yield
    library._destroy()


@pytest.fixture
def launches(monkeypatch, interpreted_triton):
    """The names of the kernels as they are launched; they do not run."""
    from triton_code import MODULES

    names = []
    for name in MODULES:
        monkeypatch.setattr(
            f"clsd_fast.triton.{name}.launch",
            lambda kernel, *args, **options: names.append(kernel.fn.__name__),
        )
    return names
