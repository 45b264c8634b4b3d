import pytest
import torch
from support import interpreter

import clsd_fast
from clsd_fast.backend import native as native_backend

# The tensors are tiny: on a busy machine threads would wait for each other most of the time.
# The tests of threads (ops/test_library.py) choose their own number.
torch.set_num_threads(1)


def pytest_report_header() -> list[str]:
    return [
        f"native CPU library: {native_backend.missing or 'loaded'}",
        f"Triton's interpreter: {interpreter.MISSING or 'ready'}",
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that name their backend: that decides which code runs, not what is built. Let
    ``-k native`` find those that the fixture makes so, as it finds ``[native]``."""
    for item in items:
        named = {"backend", "native"} & set(item.fixturenames)
        if named:
            item.add_marker("names_backend")
        item.extra_keyword_matches.update(named - {"backend"})
    # The interpreter's tests take longest: where several processes share the tests, short ones are
    # left for those that have ended.
    items.sort(key=lambda item: item.path.parent.name != "triton")


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
def threads():
    """torch.set_num_threads, put back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
