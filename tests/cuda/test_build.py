"""The CUDA library builds without a GPU and without a PyTorch for GPUs."""

import json
import re
import subprocess
import sys

import build_cuda
import native_build
import pytest
import sass_code
import torch

from clsd_fast.backend import native as native_backend


def test_has_every_architecture(cuda_library):
    contents = cuda_library.read_bytes()
    names = ("sm_80", "sm_86", "sm_89", "sm_90a", "sm_100", "sm_120")
    assert [name for name in names if name.encode() not in contents] == []


def test_has_ptx_for_all_other_gpus(readable_library):
    """Machine code is for one major version, PTX for all that follow: sm_110 is one of those."""
    listing = sass_code.cuobjdump_of(readable_library, "-lptx")
    assert {"sm_100", "sm_120"} <= set(re.findall(r"\.(sm_\d+)\.ptx", listing))


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_needs_pytorch_with_cuda(cuda_library):
    """It asks for PyTorch's library by name, else it would not find it where there is one. It does
    not load into a PyTorch without, which has no streams, and the reason is remembered."""
    assert "libtorch_cuda.so: cannot open shared object file" in native_backend._load(cuda_library)


LOAD = """
import ctypes, json, sys
import clsd_fast
from clsd_fast.backend import native
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
native.CUDA_LIBRARY = sys.argv[2]
library = ctypes.CDLL(sys.argv[2])
print(json.dumps([
    library.clsd_cuda_kernels(), native._ask_cuda_library(), sorted(native.operators_for("CUDA"))
]))
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a PyTorch without CUDA")
def test_asks_whether_it_runs(readable_library):
    """For every kernel; on a machine without a driver, it says so. The linker's stand-in for
    PyTorch's library lets it load."""
    stand_in = readable_library.with_name("libtorch_cuda.so")
    found = subprocess.run(
        [sys.executable, "-c", LOAD, stand_in, readable_library], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]
    kernels, reason, operators = json.loads(found.stdout)
    symbols = sass_code.resources(sass_code.cuobjdump_of(readable_library, "-res-usage"))
    assert kernels == sum(architecture == "sm_90a" for architecture, _ in symbols)
    assert re.fullmatch(r"a driver for CUDA \d+\.0, got none", reason)
    blocks, tails = ["residual_block", "residual_blocks"], ["upsample_tail", "upsample_tails"]
    convs = ["conv3x3", "conv3x3s"]
    assert operators == [*convs, "l1_losses", "pixel_shuffle_upsample", *blocks, *tails]


@pytest.mark.parametrize(
    "architectures, message",
    [
        ("sm_80", "expected items like 8.0, 9.0a .*, got sm_80"),
        ("7.0 7.5", "expected 8.0 or above"),
    ],
)
def test_unknown_architectures(cuda_library, architectures, message):
    with pytest.raises(RuntimeError, match=message):
        native_build.build("cuda_unknown", "_C_cuda", TORCH_CUDA_ARCH_LIST=architectures)


def test_a_list_for_all_of_pytorch(cuda_library):
    """Kernels of which 7.5 knows no instruction are not built for it, and those for 9.0a are."""
    contents = native_build.build(
        "cuda_of_pytorch", "_C_cuda", "csrc/cuda/packing.cu", TORCH_CUDA_ARCH_LIST="7.5 9.0"
    ).read_bytes()
    assert [b"sm_75" in contents, b"sm_90a" in contents] == [False, True]


def test_a_library_from_elsewhere(monkeypatch, tmp_path):
    monkeypatch.setattr(build_cuda, "TARGET", tmp_path / "_C_cuda.so")
    (tmp_path / "other.so").write_bytes(b"kernels")
    build_cuda.main(["--library", str(tmp_path / "other.so")])
    assert (tmp_path / "_C_cuda.so").read_bytes() == b"kernels"
