"""The CUDA library builds without a GPU and without a PyTorch for GPUs."""

import os
import shutil

import native_build
import pytest
import torch

from clsd_fast import _native

#: The architectures that a kernel is written for; others are variations of them.
ARCHITECTURES = "8.0;9.0a"


@pytest.fixture(scope="module")
def library():
    lacking = native_build.missing()
    if lacking is None and not (os.environ.get("CUDACXX") or shutil.which("nvcc")):
        lacking = "nvcc"
    if lacking:
        pytest.skip(f"needs {lacking} to build the CUDA kernels")
    return native_build.build("cuda", "_C_cuda", TORCH_CUDA_ARCH_LIST=ARCHITECTURES)


def test_has_every_architecture(library):
    contents = library.read_bytes()
    assert b"sm_80" in contents and b"sm_90a" in contents


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_needs_pytorch_with_cuda(library):
    """It does not load into one without, which has no streams, and the reason is remembered."""
    assert "undefined symbol: aoti_torch_get_current_cuda_stream" in _native._load(library)


def test_unknown_architecture(library):
    with pytest.raises(RuntimeError, match="expected items like 8.0, 9.0a .*, got sm_80"):
        native_build.build("cuda_unknown", "_C_cuda", TORCH_CUDA_ARCH_LIST="sm_80")
