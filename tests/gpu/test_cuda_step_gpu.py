"""A training step of CLSD on a GPU under bfloat16 autocast: close to PyTorch's, and repeatable."""

import pytest
import torch
from support.cuda_cases import CONVOLUTIONS, MARKS, assert_equal, require
from support.steps import assert_step_close, exact_step, step
from support.util import rand

import clsd_fast

pytestmark = MARKS

BATCH, PATCH, SCALE = 4, 48, 2


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    hr = 255 * torch.rand(BATCH, 3, SCALE * PATCH, SCALE * PATCH, generator=generator)
    lr = torch.nn.functional.avg_pool2d(hr, SCALE)
    return [image.cuda().contiguous(memory_format=torch.channels_last) for image in (lr, hr)]


@pytest.fixture
def model():
    for op in CONVOLUTIONS:
        require(op)
    torch.manual_seed(0)
    model = clsd_fast.CLSD(clsd_fast.EDSR(SCALE, num_blocks=6), taps=(2, 4), head_blocks=1)
    return model.to("cuda", memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def deterministic_cudnn():
    """What is left to cuDNN, the 1x1 convolutions, is to be bit-equal, too."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):
        yield


def test_step_is_as_close_to_float64_as_pytorch_s(model, batch):
    ours = step(model, *batch)
    with clsd_fast.use_backend("reference"):
        theirs = step(model, *batch)
        exact = exact_step(model, *batch)
    assert_step_close(ours, exact, theirs, torch.bfloat16)


def test_two_steps_are_bit_equal(model, batch):
    assert_equal(step(model, *batch), step(model, *batch))


def test_whole_step_in_a_cuda_graph(model, batch):
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step(model, *batch)  # compiles Triton's kernels, which a capture does not allow
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(model, *batch)
    for image in batch:
        image.mul_(0.5)
    graph.replay()
    assert_equal(captured, step(model, *batch))


def test_compiled_block():
    require("residual_block")
    block = clsd_fast.nn.ResidualBlock(64).to("cuda", torch.bfloat16)
    x = rand(BATCH, 64, PATCH, PATCH).to("cuda", torch.bfloat16)
    compiled = torch.compile(block, fullgraph=True, dynamic=False)
    assert_equal([compiled(x)], [block(x)])
    assert_equal(
        torch.autograd.grad(compiled(x).sum(), block.parameters()),
        torch.autograd.grad(block(x).sum(), block.parameters()),
    )
