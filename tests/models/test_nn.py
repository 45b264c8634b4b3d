import pickle

import pytest
import torch
from support.touches import TOUCHES
from support.util import rand

import clsd_fast
from clsd_fast.nn import (
    Conv3x3,
    MeanShift,
    PixelShuffleUpsampler,
    ResidualBlock,
    ResidualBlocks,
    UpsampleTail,
    _chains,
)


def touch_by_padding(conv, seen):
    conv.padding_mode = "reflect"
    conv.register_forward_hook(lambda *_: seen.append(None))


@pytest.mark.parametrize("touch", [*TOUCHES, touch_by_padding])
@pytest.mark.parametrize(
    "make, child",
    [
        (lambda: ResidualBlock(4, 0.5), "body.2"),
        (lambda: ResidualBlocks(*(ResidualBlock(4, 0.5) for _ in range(4))), "2.body.0"),
        (lambda: PixelShuffleUpsampler(4, 4), "2"),
        (lambda: UpsampleTail(4, 4, collapse=True), "0.0"),
        (lambda: UpsampleTail(3, 4, collapse=True), "1"),
    ],
)
def test_touched_children_run_themselves(backend, make, child, touch):
    """And the result is that of all children."""
    module, seen = make().double(), []
    touch(module.get_submodule(child), seen)
    x = rand(2, 4, 5, 6)
    result = module(x)
    assert seen
    torch.testing.assert_close(result, by_children(module, x))


def by_children(module, x):
    if isinstance(module, ResidualBlock):
        return x + module.res_scale * by_children(module.body, x)
    if isinstance(module, torch.nn.Sequential):
        for child in module:
            x = by_children(child, x)
        return x
    return module(x)


@pytest.mark.parametrize("activation", [torch.nn.ReLU(inplace=True), torch.nn.GELU()])
def test_another_activation(backend, activation):
    block = ResidualBlock(4).double()
    block.body[1] = activation
    x = rand(2, 4, 5, 6)
    torch.testing.assert_close(block(x), by_children(block, x))


def without_hooks(conv):
    conv.padding_mode = "circular"


def by_conv_forward(conv):
    forward = conv._conv_forward
    conv._conv_forward = lambda x, weight, bias: -forward(x, weight, bias)


@pytest.mark.parametrize("change", [without_hooks, by_conv_forward])
def test_other_ways_to_convolve_are_followed(backend, change):
    block, plain = ResidualBlock(4, 0.5).double(), torch.nn.Conv2d(4, 4, 3, padding=1).double()
    last = block.body[2]
    plain.load_state_dict(last.state_dict())
    change(last), change(plain)
    x = rand(2, 4, 5, 6)
    expected = x + 0.5 * plain(block.body[1](block.body[0](x)))
    torch.testing.assert_close(block(x), expected)
    torch.testing.assert_close(last(x, x), x + plain(x))


def test_another_pixel_shuffle(backend):
    tail = UpsampleTail(2, 4, collapse=True).double()
    tail[0][1] = torch.nn.PixelShuffle(1)
    tail[1] = Conv3x3(16, 3).double()
    x = rand(2, 4, 5, 6)
    torch.testing.assert_close(tail(x), by_children(tail, x))


def test_a_learned_res_scale(backend):
    """Of a block, and of several that share it."""
    scale = torch.nn.Parameter(torch.tensor([0.3], dtype=torch.float64))
    blocks = ResidualBlocks(*(ResidualBlock(4, scale) for _ in range(3))).double()
    plain = ResidualBlocks(*(ResidualBlock(4, 0.3) for _ in range(3))).double()
    plain.load_state_dict({k: v for k, v in blocks.state_dict().items() if "scale" not in k})
    x = rand(2, 4, 5, 6)
    torch.testing.assert_close(blocks(x), plain(x))
    scale = blocks[0].res_scale
    (gradient,) = torch.autograd.grad(blocks(x).sum(), scale)
    step = 1e-5
    with torch.no_grad():
        ends = []
        for value in (0.3 + step, 0.3 - step):
            scale.fill_(value)
            ends.append(blocks(x).sum())
    torch.testing.assert_close(gradient.squeeze(), (ends[0] - ends[1]) / (2 * step))


def test_residual_blocks_in_chains(backend, monkeypatch):
    """Of blocks that can be one operator; other modules, and blocks that differ, end a chain."""
    torch.manual_seed(0)
    blocks = [ResidualBlock(4) for _ in range(7)]
    blocks[4].res_scale = 0.5
    modules = ResidualBlocks(*blocks[:3], torch.nn.ReLU(), *blocks[3:]).double()
    modules[1].body[0].register_forward_hook(lambda *_: None)
    chains = [[list(modules).index(m) for m in chain] for chain in _chains(list(modules))]
    assert chains == [[0], [1], [2], [3], [4], [5], [6, 7]]
    x = rand(2, 4, 5, 6)
    for stop in (None, -1, 3):
        end = list(modules)[:stop]
        taps = [2, 1, len(end)]
        y, maps = modules.run(x, taps, stop)
        expected = [x]
        for module in end:
            expected.append(by_children(module, expected[-1]))
        torch.testing.assert_close([y, *maps], [expected[i] for i in (len(end), *taps)])
    torch.testing.assert_close(modules(x), by_children(modules, x))


def test_residual_blocks_of_other_channels_and_dtypes_end_a_chain():
    blocks = [ResidualBlock(4), ResidualBlock(4).bfloat16(), ResidualBlock(4).bfloat16()]
    assert [len(chain) for chain in _chains(blocks)] == [1, 2]
    blocks[1].body[0].bias = None
    assert [len(chain) for chain in _chains(blocks)] == [1, 1, 1]


def test_residual_blocks_refuse_other_taps():
    modules = ResidualBlocks(ResidualBlock(4), ResidualBlock(4))
    with pytest.raises(ValueError, match=r"ResidualBlocks: expected taps in 1..1, got 2"):
        modules.run(rand(1, 4, 3, 3).float(), [2], stop=-1)


def test_residual_blocks_are_a_sequential():
    modules = ResidualBlocks(*(ResidualBlock(4) for _ in range(3)))
    plain = torch.nn.Sequential(*(ResidualBlock(4) for _ in range(3)))
    plain.load_state_dict(modules.state_dict())
    assert isinstance(modules[:2], ResidualBlocks) and len(modules[:2]) == 2
    copied = pickle.loads(pickle.dumps(modules))
    x = rand(1, 4, 5, 6).float()
    assert torch.equal(copied(x), modules(x)) and torch.equal(plain(x), modules(x))
    empty = ResidualBlocks()
    assert empty(x) is x


def test_residual_block_is_its_sequential(backend):
    block = ResidualBlock(8, res_scale=0.3).double()
    x = rand(2, 8, 5, 6)
    torch.testing.assert_close(block(x), x + 0.3 * torch.nn.Sequential(*block.body)(x))
    assert set(block.state_dict()) == {
        "body.0.weight",
        "body.0.bias",
        "body.2.weight",
        "body.2.bias",
    }


@pytest.mark.parametrize("factor, keys", [(2, {"0"}), (3, {"0"}), (4, {"0", "2"})])
def test_upsampler_is_its_sequential(backend, factor, keys):
    upsampler = PixelShuffleUpsampler(factor, 6).double()
    x = rand(2, 6, 4, 5)
    torch.testing.assert_close(upsampler(x), torch.nn.Sequential(*upsampler)(x))
    assert {key.split(".")[0] for key in upsampler.state_dict()} == keys


def test_upsampler_refuses_other_factors():
    with pytest.raises(ValueError, match=r"expected upscale_factor in \{2, 3, 4\}, got 5"):
        PixelShuffleUpsampler(5, 6)


@pytest.mark.parametrize("collapse", [True, False, None])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_tail_is_its_sequential(backend, factor, collapse):
    tail = UpsampleTail(factor, 6, 2, collapse=collapse).double()
    upsampler, last = tail
    x = rand(2, 6, 4, 5)
    expected = last(torch.nn.Sequential(*upsampler)(x))
    assert expected.shape == (2, 2, 4 * factor, 5 * factor)
    torch.testing.assert_close(tail(x), expected)
    plain = torch.nn.Sequential(PixelShuffleUpsampler(factor, 6), Conv3x3(6, 2))
    assert set(tail.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("collapse", [True, False, None])
def test_tail_is_composed_where_there_is_a_kernel(backend, monkeypatch, collapse):
    tail, calls = UpsampleTail(2, 4, collapse=collapse), []
    call = clsd_fast.nn.upsample_tail
    monkeypatch.setattr(clsd_fast.nn, "upsample_tail", lambda *a: calls.append(a) or call(*a))
    tail(rand(1, 4, 3, 3).float())
    composed = backend == "native" if collapse is None else collapse
    assert len(calls) == composed


def test_conv_is_nn_conv2d(backend):
    conv = Conv3x3(4, 6).double()
    x, residual = rand(2, 4, 5, 6), rand(2, 6, 5, 6)
    expected = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv(x, residual), residual + expected)


@pytest.mark.parametrize("padding", [(1, 1), (0, 0)])
def test_conv_with_an_activation(backend, padding):
    conv = Conv3x3(4, 6).double()
    conv.padding = padding
    x, slopes = rand(2, 4, 5, 6), rand(6, seed=1)
    plain = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=padding)
    residual = torch.ones_like(plain)
    leaky = conv(x, residual, activation="leaky_relu", negative_slope=0.2)
    expected = torch.nn.functional.leaky_relu(residual + plain, 0.2)
    torch.testing.assert_close(leaky, expected)
    expected = torch.nn.functional.prelu(plain, slopes)
    torch.testing.assert_close(conv(x, activation="prelu", negative_slope=slopes), expected)
    with pytest.raises(ValueError, match="expected activation relu, leaky_relu, prelu or None"):
        conv(x, activation="gelu")


def test_same_seed_same_parameters_as_nn_conv2d():
    torch.manual_seed(3)
    ours = Conv3x3(4, 6)
    torch.manual_seed(3)
    theirs = torch.nn.Conv2d(4, 6, 3, padding=1)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)


def test_mean_shift_is_frozen():
    shift = MeanShift(255.0, (0.5, 0.25, 0.0), sign=-1)
    expected = torch.tensor([-127.5, -63.75, 0.0]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    torch.testing.assert_close(shift(torch.zeros(2, 3, 4, 5)), expected)
    assert {k: tuple(v.shape) for k, v in shift.state_dict().items()} == {
        "weight": (3, 3, 1, 1),
        "bias": (3,),
    }
    assert not any(p.requires_grad for p in shift.parameters())


def test_mean_shift_keeps_the_steps_of_an_image():
    """Under autocast, and of 16-bit features."""
    shift = MeanShift(255.0, (0.5, 0.25, 0.0), sign=1)
    x = (torch.arange(75).reshape(1, 3, 5, 5) / 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        shifted = shift(x)
    expected = x.float() + torch.tensor([127.5, 63.75, 0.0]).view(1, 3, 1, 1)
    assert shifted.dtype == torch.float32 and torch.equal(shifted, expected)
    half = MeanShift(1.0, (0.5, 0.25, 0.0), sign=1).bfloat16()
    assert half(x).dtype == torch.bfloat16
