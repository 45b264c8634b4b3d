"""The CUDA library builds without a GPU and without a PyTorch for GPUs."""

import importlib
from pathlib import Path

import native_build
import pytest
import torch

from clsd_fast import _native

TOOLS = Path(__file__).parent.parent / "tools"


@pytest.fixture(scope="module")
def library():
    if lacking := native_build.missing_for_cuda():
        pytest.skip(f"needs {lacking} to build the CUDA kernels")
    return native_build.build_cuda()


def test_has_every_architecture(library):
    contents = library.read_bytes()
    names = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
    assert [name for name in names if name.encode() not in contents] == []


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_needs_pytorch_with_cuda(library):
    """It asks for PyTorch's library by name, else it would not find it where there is one. It does
    not load into a PyTorch without, which has no streams, and the reason is remembered."""
    assert "libtorch_cuda.so: cannot open shared object file" in _native._load(library)


def test_unknown_architecture(library):
    with pytest.raises(RuntimeError, match="expected items like 8.0, 9.0a .*, got sm_80"):
        native_build.build("cuda_unknown", "_C_cuda", TORCH_CUDA_ARCH_LIST="sm_80")


@pytest.mark.parametrize("capability, name", [((8, 6), "8.6"), ((9, 0), "9.0a"), ((12, 0), "12.0")])
def test_architecture_of_a_gpu(monkeypatch, capability, name):
    monkeypatch.syspath_prepend(TOOLS)
    assert importlib.import_module("build_cuda").architectures(capability) == name


def test_a_library_from_elsewhere(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(TOOLS)
    build_cuda = importlib.import_module("build_cuda")
    monkeypatch.setattr(build_cuda, "TARGET", tmp_path / "_C_cuda.so")
    (tmp_path / "other.so").write_bytes(b"kernels")
    build_cuda.main(["--library", str(tmp_path / "other.so")])
    assert (tmp_path / "_C_cuda.so").read_bytes() == b"kernels"
