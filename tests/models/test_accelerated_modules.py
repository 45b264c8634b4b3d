"""That accelerated modules stay what they were, whatever is done to them later."""

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
    ResBlock,
    ResidualBlock,
    Upsampler,
    conv,
)

import clsd_fast
from clsd_fast import accelerate, restore
from clsd_fast._accelerate import classes, convs


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
