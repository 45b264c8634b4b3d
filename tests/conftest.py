import os
from pathlib import Path

import pytest
import torch

import clsd_fast
from clsd_fast import _native

# The tensors are tiny: on a busy machine threads would wait for each other most of the time.
# The tests of threads (test_library.py) choose their own number.
torch.set_num_threads(1)


def pytest_report_header() -> str:
    return f"native CPU library: {_native.missing or 'loaded'}"


@pytest.fixture(params=["native", "reference"])
def backend(request):
    """Each backend that this installation has, in use for the test."""
    if request.param == "native" and _native.missing:
        pytest.skip(f"needs the native CPU library: {_native.missing}")
    with clsd_fast.use_backend(request.param):
        yield request.param


@pytest.fixture
def native():
    """The native backend, in use for the test."""
    if _native.missing:
        pytest.skip(f"needs the native CPU library: {_native.missing}")
    with clsd_fast.use_backend("native"):
        yield


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
