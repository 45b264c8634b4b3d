import pytest
import torch
from support.calls import CALLS, IMAGES
from support.every_operator import compiles_as_one_graph
from support.grids import NATIVE_FIRST, cover

import clsd_fast


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@NATIVE_FIRST
@pytest.mark.parametrize("name", CALLS)
def test_whole_graph(backend, name):
    compiles_as_one_graph(name, "aot_eager")


@cover(quick=1, name=["residual_block", "info_nce"])
def test_inductor(native, name):
    compiles_as_one_graph(name, "inductor")


@NATIVE_FIRST
@pytest.mark.parametrize("name", IMAGES)
def test_channels_last_is_kept(backend, name):
    function, make = CALLS[name]
    tensors = [t.float() for t in make()]
    tensors[0] = tensors[0].contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    expected, ours = function(*tensors), compiled(*tensors)
    assert ours.stride() == expected.stride()
    torch.testing.assert_close(ours, expected)


def test_the_backend_is_part_of_the_graph(native):
    function, make = CALLS["conv3x3"]
    tensors = [t.float() for t in make()]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for name in ("native", "reference"):
        with clsd_fast.use_backend(name):
            torch.testing.assert_close(compiled(*tensors), function(*tensors), rtol=0, atol=0)
