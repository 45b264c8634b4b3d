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
    triton_backend.register(library, "CPU", allow_override=True)
    with clsd_fast.use_backend("triton"):
        yield
    library._destroy()


@pytest.fixture
def launches(monkeypatch, interpreted_triton):
    """The names of the kernels as they are launched; they do not run."""
    from clsd_fast.triton import (
        _rows,
        distance_ratio_loss,
        info_nce,
        pairwise_similarity,
        upsample_tail,
    )
    from clsd_fast.triton.tail import compose

    names = []
    for module in (
        _rows,
        distance_ratio_loss,
        info_nce,
        pairwise_similarity,
        upsample_tail,
        compose,
    ):
        monkeypatch.setattr(
            module, "launch", lambda kernel, *args, **options: names.append(kernel.fn.__name__)
        )
    return names
