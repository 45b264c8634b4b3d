import os
from importlib import import_module
from pathlib import Path

import native_build
import numpy
import pytest
import torch
from support import emulated

import clsd_fast
from clsd_fast.backend import native as native_backend
from clsd_fast.backend import triton as triton_backend

# The tensors are tiny: on a busy machine threads would wait for each other most of the time.
# The tests of threads (test_library.py) choose their own number.
torch.set_num_threads(1)


def import_interpreted() -> str | None:
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


NOT_INTERPRETED = import_interpreted()


def pytest_report_header() -> list[str]:
    return [
        f"native CPU library: {native_backend.missing or 'loaded'}",
        f"Triton's interpreter: {NOT_INTERPRETED or 'ready'}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that name their backend: that decides which code runs, not what is built."""
    for item in items:
        if {"backend", "native"} & set(item.fixturenames):
            item.add_marker("names_backend")


@pytest.fixture(params=["native", "reference"])
def backend(request):
    """Each backend that this installation has, in use for the test."""
    if request.param == "native" and native_backend.missing:
        pytest.skip(f"needs the native CPU library: {native_backend.missing}")
    with clsd_fast.use_backend(request.param):
        yield request.param


@pytest.fixture
def native():
    """The native backend, in use for the test."""
    if native_backend.missing:
        pytest.skip(f"needs the native CPU library: {native_backend.missing}")
    with clsd_fast.use_backend("native"):
        yield


@pytest.fixture
def interpreted_triton(monkeypatch):
    """The Triton kernels on CPU tensors, interpreted, in use for the test."""
    if NOT_INTERPRETED is not None:
        pytest.skip(f"needs Triton's interpreter: {NOT_INTERPRETED}")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton_backend, "devices", frozenset({"cpu"}))
    library = torch.library.Library("clsd_fast", "IMPL")
    triton_backend.register(library, "CPU", allow_override=True)
    with clsd_fast.use_backend("triton"):
        yield
    library._destroy()


@pytest.fixture(scope="session")
def emulated_library():
    """The CUDA operators' emulation, built once."""
    lacking = native_build.missing()
    if lacking:
        pytest.skip(f"needs {lacking} to build the emulation of CUDA kernels")
    return emulated.Emulation(native_build.build("cuda_emulation", "_emulated"))


@pytest.fixture
def emulation(emulated_library):
    """The CUDA operators on CPU tensors; what they do not write of their outputs is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # which fills new tensors with NaN
    emulated_library.reset()
    yield emulated_library
    emulated_library.reset()
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def threads():
    """torch.set_num_threads, put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def image_data() -> Path:
    """The folder of real images that CLSD_DATA names."""
    if "CLSD_DATA" not in os.environ:
        pytest.skip("needs the image folder that CLSD_DATA names")
    return Path(os.environ["CLSD_DATA"])
