"""What is replaced by what, and that modules stay what they were."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.accelerated import accelerated, assert_same, images, operators, reasons
from support.touches import TOUCHES
from support.util import rand
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.parametrize import remove_parametrizations
from zoo.blocks import (
    CRC,
    ConvReLU,
    Functional,
    ResBlock,
    ResidualBlock,
    ResidualBlockNoBN,
    Upsampler,
    conv,
)

import clsd_fast
from clsd_fast import accelerate, restore
from clsd_fast._accelerate import classes, convs

BLOCKS = [ResBlock, ResidualBlockNoBN, CRC, Functional, ResidualBlock, ConvReLU]


@pytest.mark.parametrize("make", BLOCKS)
def test_blocks_compute_what_they_did(backend, make):
    plain, ours = accelerated(make())
    assert_same(ours, plain, images())


@pytest.mark.parametrize(
    "make, expected",
    [
        (ResBlock, ["residual_block"]),
        (ResidualBlockNoBN, ["residual_block"]),
        (CRC, ["residual_block"]),
        (Functional, ["residual_block"]),
        (ResidualBlock, ["conv3x3", "conv3x3"]),
        (ConvReLU, ["conv3x3"]),
    ],
)
def test_operators_of_blocks(calls, make, expected):
    block = accelerate(make(), verify=False)
    block(images().float())
    assert calls == expected
    assert operators(block) == expected[:1]


class TwoSlopes(ResidualBlockNoBN):
    """Of its own in either place."""

    def __init__(self, num_feat=16):
        super().__init__(num_feat, 0.3)
        self.relu, self.last = nn.PReLU(num_feat), nn.PReLU()

    def forward(self, x):
        return self.last(super().forward(x))


class OneSlope(ResidualBlock):
    """In both places."""

    def __init__(self):
        super().__init__()
        self.body[1] = nn.LeakyReLU(0.2, inplace=True)

    def forward(self, x):
        return self.body[1](x + self.body(x))


def with_activation(activation):
    module = ConvReLU()
    module.relu = activation
    return module


ACTIVATIONS = [
    lambda: nn.LeakyReLU(0.2, inplace=True),
    lambda: nn.LeakyReLU(-0.5),
    lambda: nn.PReLU(16),
    nn.PReLU,
]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda act: nn.Sequential(conv(), act, conv()), ["conv3x3", "conv3x3"]),
        (with_activation, ["conv3x3"]),
        (lambda act: ResBlock(activation=act, res_scale=0.1), ["conv3x3", "conv3x3"]),
    ],
    ids=["sequence", "module", "block"],
)
def test_other_activations_are_the_convolutions_too(calls, monkeypatch, activation, make, expected):
    layer = activation()
    plain, ours = accelerated(make(layer))
    calls.clear()
    assert_same(ours, plain, images())
    assert calls == expected
    monkeypatch.setattr(type(layer), "forward", None)
    ours(images())


@pytest.mark.parametrize("make", [TwoSlopes, OneSlope])
def test_activations_before_and_after_the_sum(calls, make):
    plain, ours = accelerated(make())
    calls.clear()
    assert_same(ours, plain, images())
    assert calls == ["conv3x3", "conv3x3"]
    assert [row.layer for row in accelerate.report(ours).rows] == [make.__name__]


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: nn.Sequential(conv(), nn.PReLU(16)), "1"),
        (lambda: with_activation(nn.PReLU(16)), "relu"),
    ],
)
def test_slopes_that_do_not_fit_are_refused_by_pytorch(native, make, name):
    model = accelerate(make())
    model.get_submodule(name).weight = nn.Parameter(torch.ones(8))
    with pytest.raises(RuntimeError, match="Mismatch of parameter numbers"):
        model(images().float())


@pytest.mark.parametrize("make", [ResBlock, ResidualBlockNoBN])
@pytest.mark.parametrize("scale", [1, 0.1])
def test_the_scale_is_the_attribute(calls, make, scale):
    plain, ours = accelerated(make(res_scale=scale))
    calls.clear()
    for value in (scale, 0.7):
        plain.res_scale = ours.res_scale = value
        assert_same(ours, plain, images())
    assert set(calls) == {"residual_block"}


class WithAnotherNumber(CRC):
    """Which is that of its scale by chance."""

    def __init__(self):
        super().__init__()
        self.momentum = 0.1

    def forward(self, x):
        return x + 0.1 * self.res(x)


def test_a_number_that_is_not_the_scale(calls):
    plain, ours = accelerated(WithAnotherNumber())
    plain.momentum = ours.momentum = 0.7
    calls.clear()
    assert_same(ours, plain, images())
    assert calls == ["residual_block"]


class Named(nn.Module):
    """By words that the implementation has uses for, too."""

    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(conv(), nn.ReLU(), conv())
        self.scale = self.kind = 0.3
        self.original = self.plan = "mine"

    def run(self, x):
        return self.convs(x)

    def layers(self):
        return self.run

    def forward(self, x):
        return x + self.layers()(x) * self.scale


def test_a_module_s_own_names_are_its_own(calls):
    plain, ours = accelerated(nn.Sequential(Named(), Named()))
    calls.clear()
    assert_same(ours, plain, images())
    assert_same(ours[0], plain[0], images())
    assert calls == ["residual_blocks", "residual_block"]
    assert ours[0].layers() == ours[0].run and ours[0].plan == "mine"


@pytest.mark.parametrize("channels", [17, 20, 36, 62])
def test_channels_need_be_no_multiple_of_8(calls, channels):
    """From 16 on, they are not the slower ones (docs/cpu.md)."""
    plain, ours = accelerated(nn.Sequential(conv(channels), nn.ReLU()))
    calls.clear()
    assert_same(ours, plain, images(channels))
    assert calls == ["conv3x3"]


ACTIVATED = nn.ReLU()
SEQUENCES = {
    "a chain of three and another": (
        lambda: nn.Sequential(*(ResBlock(res_scale=s) for s in (0.1, 0.1, 0.1, 0.2)), conv()),
        ["residual_blocks", "residual_block", "conv3x3"],
    ),
    "a chain without biases": (
        lambda: nn.Sequential(*(ResBlock(bias=False) for _ in range(2))),
        ["residual_blocks"],
    ),
    "no chain of blocks with and without": (
        lambda: nn.Sequential(ResBlock(), ResBlock(bias=False)),
        ["residual_block", "residual_block"],
    ),
    "no chain that ends in a ReLU": (
        lambda: nn.Sequential(ResidualBlock(), ResidualBlock()),
        ["conv3x3"] * 4,
    ),
    "sequences in a sequence": (
        lambda: nn.Sequential(nn.Sequential(CRC(), CRC()), nn.Sequential(CRC())),
        ["residual_blocks"],
    ),
    "convolutions that share a ReLU": (
        lambda: nn.Sequential(conv(), ACTIVATED, conv(), ACTIVATED, conv()),
        ["conv3x3"] * 3,
    ),
    "tail x2": (lambda: nn.Sequential(Upsampler(2), conv(16, 3)), ["upsample_tail"]),
    "tail x3": (lambda: nn.Sequential(Upsampler(3), conv(16, 3)), ["upsample_tail"]),
    "tail x4": (lambda: nn.Sequential(Upsampler(4), conv(16, 1)), ["upsample_tail"]),
    "flat tail": (lambda: nn.Sequential(*Upsampler(4), conv(16, 3)), ["upsample_tail"]),
    "no tail of many channels": (
        lambda: nn.Sequential(Upsampler(2), conv()),
        ["pixel_shuffle_upsample", "conv3x3"],
    ),
    "no tail of other factors": (
        lambda: nn.Sequential(Upsampler(2), Upsampler(3), conv(16, 3)),
        ["pixel_shuffle_upsample", "upsample_tail"],
    ),
    "upsampler": (lambda: Upsampler(4), ["pixel_shuffle_upsample"] * 2),
    "pixel shuffle at the end": (
        lambda: nn.Sequential(conv(16, 32), nn.ReLU(), conv(32, 48), nn.PixelShuffle(4)),
        ["conv3x3", "pixel_shuffle_upsample"],
    ),
    "batch normalisation between": (
        lambda: nn.Sequential(conv(), nn.BatchNorm2d(16), nn.ReLU(), *Upsampler(2)),
        ["conv3x3", "pixel_shuffle_upsample"],
    ),
    "layers that are none of ours": (
        lambda: nn.Sequential(nn.BatchNorm2d(16), conv(), nn.GELU(), nn.Conv2d(16, 16, 5)),
        ["conv3x3"],
    ),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(calls, name):
    make, expected = SEQUENCES[name]
    plain, ours = accelerated(make())
    calls.clear()
    assert_same(ours, plain, images())
    assert calls == expected


def test_a_report(native):
    blocks = (ResBlock(32) for _ in range(3))
    body = nn.Sequential(*blocks, nn.GELU(), conv(32), conv(32, 64))
    tail = nn.Sequential(Upsampler(2, 64), conv(64, 3))
    model = accelerate(nn.Sequential(conv(3, 32), body, tail))
    lines = str(accelerate.report(model)).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "5 replaced",
        "module layer runs on times as fast (CPU, training)",
        "0 and 2 more Conv2d conv3x3",
        "1.0 3 ResBlock residual_blocks 1.6 to 3.4",
        "1.3 GELU left alone: no kernel for this activation",
        "2.0.0 Conv2d + PixelShuffle + Conv2d upsample_tail 9 to 13",
    ]
    restored = {row.reason for row in accelerate.report(restore(model)).rows}
    assert restored == {
        "no kernel for this activation",
        "accelerate was not called since it is as it is",
    }


@pytest.mark.parametrize(
    "channels, gain",
    [
        ((3, 64), "1.1 to 1.6"),
        ((64, 3), "1.3 to 2.1"),
        ((64, 64), "2.0 to 3.0"),
        ((36, 128), "2.0 to 3.0"),
        ((3, 32), None),
        ((32, 64), None),
    ],
)
def test_gains_are_told_where_they_were_measured(native, channels, gain):
    (row,) = accelerate.report(accelerate(conv(*channels))).rows
    assert row.gain == gain


def touch_by_padding_mode(module, seen):
    module.padding_mode = "circular"
    seen.append(None)


def touch_by_conv_forward(module, seen):
    forward = module._conv_forward
    module._conv_forward = lambda *args: seen.append(None) or -forward(*args)


@pytest.mark.parametrize("touch", [*TOUCHES, touch_by_padding_mode, touch_by_conv_forward])
@pytest.mark.parametrize(
    "make, name",
    [
        (ResBlock, "body.2"),
        (ResidualBlock, "body.0"),
        (ConvReLU, "conv"),
        (lambda: nn.Sequential(CRC(), CRC(), CRC()), "1.res.0"),
        (lambda: nn.Sequential(Upsampler(2), conv(16, 3)), "0.0"),
        (lambda: nn.Sequential(conv(), nn.ReLU()), "0"),
    ],
)
def test_what_is_touched_later_runs_itself(backend, touch, make, name):
    plain, ours = accelerated(make())
    seen = [], []
    for model, own in zip((plain, ours), seen, strict=True):
        touch(model.get_submodule(name), own)
    x = images()
    seen[0].clear(), seen[1].clear()
    torch.testing.assert_close(ours(x), plain(x))
    assert seen[0] == seen[1] != [] or touch is touch_by_padding_mode


@pytest.mark.parametrize(
    "make, name",
    [
        (ResBlock, "body"),
        (ResBlock, "body.1"),
        (lambda: nn.Sequential(CRC(), CRC()), "1"),
        (lambda: nn.Sequential(Upsampler(2), conv(16, 3)), "0"),
        (lambda: nn.Sequential(conv(), nn.ReLU()), "1"),
    ],
)
def test_hooks_see_what_they_would(backend, make, name):
    plain, ours = accelerated(make())
    seen = [], []
    for model, own in zip((plain, ours), seen, strict=True):
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, own=own: own.append(output)
        )
    torch.testing.assert_close(ours(images()), plain(images()))
    assert len(seen[0]) == 1
    torch.testing.assert_close(*seen)


def test_a_scale_that_is_learned_since(backend):
    plain, ours = accelerated(nn.Sequential(ResBlock(), ResBlock()))
    for model in (plain, ours):
        for block in model:
            block.res_scale = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    assert_same(ours, plain, images())


def test_children_may_be_replaced_later(backend):
    plain, ours = accelerated(nn.Sequential(ResBlock(), ResBlock()))
    for model in (plain, ours):
        model[1].body[1] = nn.Tanh()
        model.append(nn.Sigmoid())
    assert_same(ours, plain, images())


def test_other_calls_are_the_modules_own(backend):
    """Images without a batch, keywords, subclasses of tensors."""

    class Ours(torch.Tensor):
        pass

    plain, ours = accelerated(nn.Sequential(ResBlock(), conv(), nn.ReLU()))
    x = images()
    torch.testing.assert_close(ours(x[0]), plain(x[0]))
    torch.testing.assert_close(ours(input=x), plain(x))
    torch.testing.assert_close(ours[0](x=x), plain[0](x))
    assert type(ours(x.as_subclass(Ours))) is Ours


def network(scale=2):
    body = nn.Sequential(*(ResBlock(res_scale=0.5) for _ in range(2)), ConvReLU(), conv())
    return nn.Sequential(conv(3, 16), body, nn.Sequential(Upsampler(scale), conv(16, 3)))


def test_modules_stay_what_they_were(backend):
    plain = network()
    ours = accelerate(copy.deepcopy(plain))
    assert repr(ours) == repr(plain)
    assert list(ours.state_dict()) == list(plain.state_dict())
    for (name, module), (same, before) in zip(
        ours.named_modules(), plain.named_modules(), strict=True
    ):
        assert name == same and isinstance(module, type(before))
        assert vars(module).keys() == vars(before).keys()
    plain.load_state_dict(ours.state_dict(), strict=True)
    assert not ours.eval()[1][0].body.training and ours.train()[1][0].body.training


def saved_and_loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model, 0)), saved_and_loaded]
)
def test_copies_are_accelerated_and_apart(calls, copied):
    model = accelerate(network(), verify=False)
    other = copied(model)
    x = images(3).float()
    assert torch.equal(other(x), model(x))
    assert calls[: len(calls) // 2] == calls[len(calls) // 2 :]
    assert [type(m) for m in other.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        other[1][0].body[0].weight.zero_()
    assert not torch.equal(other(x), model(x))


def test_restore(native):
    model = network()
    before = [type(module) for module in model.modules()]
    x = images(3).float()
    expected = model(x)
    assert restore(accelerate(accelerate(model))) is model
    assert [type(module) for module in model.modules()] == before
    assert torch.equal(model(x), expected)
    assert restore(model) is model


def test_restore_refuses_what_was_parametrised_since(native):
    model = accelerate(network())
    parametrizations.weight_norm(model[1][0].body[0])
    before = [type(module) for module in model.modules()]
    sentence = "restore: expected 1.0.body.0 as accelerate left it, got it parametrised"
    with pytest.raises(ValueError, match=sentence):
        restore(model)
    assert [type(module) for module in model.modules()] == before
    assert reasons(model)["1.0.body.0"] == "parametrised since accelerate was called"
    remove_parametrizations(model[1][0].body[0], "weight")
    assert type(restore(model)[1][0].body[0]) is nn.Conv2d


@pytest.mark.parametrize(
    "function, name",
    [(accelerate, "accelerate"), (accelerate.report, "accelerate.report"), (restore, "restore")],
)
def test_only_modules(function, name):
    with pytest.raises(TypeError, match=rf"^{name}: expected an nn.Module, got int$"):
        function(3)


def test_verify_refuses_what_differs(native, monkeypatch):
    monkeypatch.setattr(convs, "conv3x3", lambda x, *args: 1.01 * F.conv2d(x, *args, padding=1))
    model = conv()
    assert type(accelerate(model)) is nn.Conv2d
    assert reasons(model)[""].startswith("its results differ by 0.0")
    assert type(accelerate(model, verify=False)) is not nn.Conv2d


def test_verify_refuses_what_does_not_run(native):
    model = accelerate(CRC().to(torch.float8_e5m2))
    assert reasons(model)["res.0"].startswith("it does not run by itself: ")
    assert operators(model) == []


def test_models_without_values(native):
    model = accelerate(network().to("meta"))
    assert len(operators(model)) == 5
    assert model(images(3).float().to("meta")).shape == (2, 3, 10, 12)


def test_16_bit_images_beside_amx_are_left_to_pytorch(calls, monkeypatch):
    model = accelerate(network(), verify=False)
    monkeypatch.setattr(classes, "_HAS_AMX", True)
    x = images(3).float()
    with torch.autocast("cpu", torch.bfloat16):
        model(x)
    model.bfloat16()(x.bfloat16())
    assert calls == []
    model.float()(x)
    assert calls


def test_the_reference_runs_the_modules_as_they_were(calls):
    plain = network()
    ours = accelerate(copy.deepcopy(plain), verify=False)
    x = images(3).float()
    with clsd_fast.use_backend("reference"):
        assert torch.equal(ours(x), plain(x))
    assert calls == []


def test_compiled(native):
    plain, ours = accelerated(network())
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert_same(compiled, plain, images(3))


def test_recorded_programs_need_pytorch_alone(native):
    plain, ours = accelerated(network().eval())
    x = images(3)
    program = torch.export.export(ours, (x,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names and all(name.startswith("aten.") for name in names)
    assert program.state_dict.keys() == plain.state_dict().keys()
    traced = torch.jit.trace(ours, x, check_trace=False)
    assert "clsd_fast" not in str(traced.inlined_graph)
    symbolic = torch.fx.symbolic_trace(ours)
    for model in (program.module(), traced, symbolic):
        torch.testing.assert_close(model(x), plain(x))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_have_the_memory_format_of_images(native, layout):
    """Of chains, which are computed in channels_last, too."""
    model = accelerate(nn.Sequential(CRC(), CRC()))
    assert model(images().float().to(memory_format=layout)).is_contiguous(memory_format=layout)


def test_transforms_see_plain_pytorch(native):
    plain, ours = accelerated(network())
    x = images(3)
    results = []
    for model in (plain, ours):
        parameters = dict(model.named_parameters())

        def loss(parameters, x, model=model):
            return torch.func.functional_call(model, parameters, (x,)).square().sum()

        results.append(torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None]))
    torch.testing.assert_close(*results)


def test_functional_call_takes_other_parameters(calls):
    plain, ours = accelerated(network())
    other = {name: rand(*p.shape, seed=5) for name, p in ours.named_parameters()}
    calls.clear()
    result = torch.func.functional_call(ours, other, (images(3),))
    torch.testing.assert_close(result, torch.func.functional_call(plain, other, (images(3),)))
    assert "residual_blocks" in calls
