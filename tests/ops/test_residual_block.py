import pytest
import torch
import torch.nn.functional as F
from support.grids import cover
from support.util import DTYPES, LAYOUTS, compare, memory_format, rand, sliced
from torch.library import opcheck

from clsd_fast import residual_block


def plain(x, weight1, bias1, weight2, bias2, res_scale=1.0):
    hidden = F.relu(F.conv2d(x, weight1, bias1, padding=1))
    return x + res_scale * F.conv2d(hidden, weight2, bias2, padding=1)


def inputs(batch, channels, height, width, hidden=None, bias=True):
    hidden = hidden or channels
    return [
        rand(batch, channels, height, width),
        rand(hidden, channels, 3, 3) / (3 * channels**0.5),
        rand(hidden) if bias else None,
        rand(channels, hidden, 3, 3, seed=1) / (3 * hidden**0.5),
        rand(channels, seed=2) if bias else None,
    ]


@cover(dtype=DTYPES, layout=LAYOUTS, channels=[3, 16, 48, 64, 65])
def test_channels_layouts_dtypes(backend, dtype, layout, channels):
    compare(residual_block, plain, inputs(2, channels, 5, 7), dtype, layout)


@cover(size=[(1, 1), (1, 6), (9, 1), (17, 14)], layout=LAYOUTS, dtype=DTYPES)
def test_sizes(backend, size, layout, dtype):
    compare(residual_block, plain, inputs(2, 16, *size), dtype, layout)


@cover(dtype=DTYPES, bias=[False, True])
def test_scale_bias_and_hidden_channels(backend, dtype, bias):
    tensors = inputs(2, 8, 4, 5, hidden=12, bias=bias)
    compare(lambda *t: residual_block(*t, 0.1), lambda *t: plain(*t, 0.1), tensors, dtype)


@cover(layout=LAYOUTS, dtype=DTYPES)
def test_expanded_gradient(backend, layout, dtype):
    compare(residual_block, plain, inputs(2, 16, 6, 5), dtype, layout, expanded_grad=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_empty_batch(backend, dtype):
    compare(residual_block, plain, inputs(0, 8, 4, 4), dtype)


def test_input_or_parameters_alone_need_a_gradient(backend):
    for wanted in ([0], [1, 2, 3, 4], [3]):
        tensors = inputs(1, 4, 3, 3)
        for index in wanted:
            tensors[index].requires_grad_()
        pairs = []
        for function in (residual_block, plain):
            output = function(*tensors)
            leaves = [tensors[index] for index in wanted]
            pairs.append(torch.autograd.grad(output, leaves, torch.ones_like(output)))
        for ours, reference in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_keeps_the_memory_format(backend, layout):
    x, *parameters = inputs(2, 4, 5, 7)
    expected = "contiguous" if layout is sliced else layout.__name__
    assert memory_format(residual_block(layout(x), *parameters)) == expected


def test_gradcheck(backend):
    tensors = [t.requires_grad_() for t in inputs(2, 3, 3, 4, hidden=2)]
    assert torch.autograd.gradcheck(lambda *t: residual_block(*t, 0.5), tensors)


@cover(quick=1, layout=LAYOUTS)
def test_opcheck(layout):
    tensors = [layout(t.float()).detach() for t in inputs(2, 5, 3, 4, hidden=4)]
    op = torch.ops.clsd_fast.residual_block
    opcheck(op, (*[t.requires_grad_() for t in tensors], 0.5, True))
    x, weight1, _, weight2, _ = (t.detach() for t in tensors)
    opcheck(op, (x, weight1, None, weight2, None, 0.5, False))
    hidden, grad = layout(rand(2, 4, 3, 4).float()), layout(rand(2, 5, 3, 4).float())
    for needs in ((True, True), (True, False), (False, True)):
        opcheck(
            torch.ops.clsd_fast.residual_block_backward,
            (grad, x, hidden, weight1, weight2, 0.5, *needs),
        )


def test_gradient_without_the_hidden_map_raises():
    tensors = [t.requires_grad_() for t in inputs(1, 4, 3, 3)]
    output, _ = torch.ops.clsd_fast.residual_block(*tensors, 1.0, False)
    with pytest.raises(RuntimeError, match="expected save_hidden=True for a gradient, got False"):
        output.sum().backward()


@pytest.mark.parametrize("batch, height, width", [(1, 280, 512), (3, 67, 260), (5, 50, 20)])
def test_strips_of_inference_are_bit_equal_to_training(native, threads, batch, height, width):
    tensors = [t.float() for t in inputs(batch, 16, height, width)]
    threads(2)
    with torch.no_grad():
        alone = residual_block(*tensors)
    tensors[1].requires_grad_()
    assert torch.equal(alone, residual_block(*tensors))
