from functools import cache, partial

import native_build
import pytest
import sass_code
import sass_report
import torch
from support import emulated


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What reads the CUDA kernels' code is thorough: nvcc takes minutes to make it."""
    for item in items:
        if "cuda_library" in item.fixturenames:
            item.add_marker("thorough")


@pytest.fixture(scope="session")
def cuda_library():
    """_C_cuda for all architectures."""
    if lacking := native_build.missing_for_cuda():
        pytest.skip(f"needs {lacking} to build the CUDA kernels")
    return native_build.build_cuda()


@pytest.fixture(scope="session")
def readable_library(cuda_library):
    """The same, where it can be taken apart."""
    if lacking := sass_report.missing():
        pytest.skip(f"needs {lacking} to read the CUDA kernels' code")
    return cuda_library


@pytest.fixture(scope="session")
def binaries(readable_library):
    """Its machine code, by architecture."""
    return cache(partial(sass_code.Binary, readable_library))


@pytest.fixture(scope="session")
def emulated_library():
    """The CUDA operators' emulation, built once."""
    lacking = native_build.missing()
    if lacking:
        pytest.skip(f"needs {lacking} to build the emulation of CUDA kernels")
    return emulated.Emulation(native_build.build_emulation())


@pytest.fixture
def emulation(emulated_library):
    """The CUDA operators on CPU tensors; what they do not write of their outputs is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # which fills new tensors with NaN
    emulated_library.reset()
    yield emulated_library
    emulated_library.reset()
    torch.use_deterministic_algorithms(before)
