import native_build
import pytest
import torch
from support import emulated


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
