"""Layers that only a forward brings together: ``self.last(self.upsample(x))``."""

import copy
import functools
import linecache
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.accelerated import accelerated, images, operators, reasons
from support.nested_forwards import (
    FORWARDS,
    ActivatedByFunctions,
    Assigning,
    Base,
    Captured,
    Derived,
    Failing,
    Guarded,
    Layers,
    Loops,
    Statements,
    Summed,
    SummedInPlace,
    Tail,
    Within,
    WithTwoWays,
)
from support.touches import TOUCHES
from torch import nn
from torch.utils.checkpoint import checkpoint
from zoo.blocks import ResidualBlock

from clsd_fast import accelerate, restore
from clsd_fast._accelerate import classes, nested, reading

UNREAD = "its forward cannot be read: its layers run one by one"


def assert_equal_results(ours, plain, x):
    """Outputs and gradients, of the parameters that the forward uses."""
    results = []
    for model in (ours, plain):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        output = model(leaf)
        (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append((output.detach(), leaf.grad, grads))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make, expected", FORWARDS)
def test_nested_calls(calls, make, expected):
    plain, ours = accelerated(make())
    assert classes.is_accelerated(ours) and type(ours) is not type(plain)
    calls.clear()
    assert_equal_results(ours, plain, images())
    assert calls == expected
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert vars(ours).keys() == vars(plain).keys()
    assert restore(ours) is ours and type(ours) is type(plain)


relu = F.relu


class WithinOneLayer(Layers):
    """Whose body is a chain without it."""

    def forward(self, x):
        return self.inner(self.body(x))


class WithItsOwnName(Layers):
    """By which others mean a function that they know."""

    def forward(self, x, relu=torch.sin):
        return relu(self.first(x))


class OfTwoArguments(Layers):
    def forward(self, x):
        y = F.relu(self.first(x), inplace=True) + F.relu(*(self.first(x),))
        return y + F.relu(self.second(x), True)


@pytest.mark.parametrize("make", [Statements, Guarded, Captured, Within])
def test_statements_that_are_something_else(native, make):
    model = make()
    model.inner, model.relu = Failing(), nn.ReLU()
    assert nested._read(make).nests == ()
    plain, ours = accelerated(model)
    assert_equal_results(ours, plain, images())


def test_sums_that_operators_do_not_have(native):
    """Of other types and shapes, and of what is no tensor."""
    plain, ours = accelerated(Summed())
    x = images().float().bfloat16()
    for model in (plain, ours):
        model.bfloat16()
    assert ours(x).dtype == plain(x).dtype
    for model in (plain, ours):
        model.float()
        model.register_forward_pre_hook(lambda module, args: (args[0].float(),))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(x), plain(x)
    assert found.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_shapes_that_do_not_fit_are_refused_by_pytorch(native):
    for model in accelerated(ResidualBlock(16, 32)):
        with pytest.raises(RuntimeError, match="The size of tensor a .32. must match"):
            model(images())


def test_a_sum_in_place_writes_into_what_it_did(native):
    """What a layer returned may be somebody else's, too."""
    plain, ours = accelerated(SummedInPlace())
    kept = []
    for model in (plain, ours):
        model.second = nn.Identity()
        model.body = nn.Identity()
        x = images()
        model(x)
        kept.append(x)
    torch.testing.assert_close(*kept)
    torch.testing.assert_close(kept[0], 2 * images())


def test_loops_that_are_something_else(native):
    assert nested._read(Loops).nests == ()
    plain, ours = accelerated(Loops())
    torch.testing.assert_close(ours(images()), plain(images()))


@pytest.mark.parametrize("make", [WithinOneLayer, WithItsOwnName, OfTwoArguments])
def test_nothing_to_run_together(native, make):
    model = make()
    model.inner = nn.Identity()
    plain, ours = accelerated(model)
    assert type(ours) is make
    assert_equal_results(ours, plain, images())


def test_classes_derived_of_it_have_their_own_forward(native):
    class Negative(type(accelerate(Tail()))):
        def forward(self, x):
            return -super().forward(x)

    derived, plain = Negative(), Tail()
    derived.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        derived(images().float()), -plain(images().float()), rtol=1e-4, atol=1e-4
    )


def test_the_ways_of_a_forward_are_its_own(calls):
    plain, ours = accelerated(WithTwoWays())
    plain.upsamples = ours.upsamples = False
    calls.clear()
    assert_equal_results(ours, plain, images())
    assert calls == ["conv3x3"]


def test_arguments_and_defaults(native):
    for make in (Base, Derived):
        plain, ours = accelerated(make())
        for options in ({}, {"gain": 0.5}, {"shift": -1}):
            torch.testing.assert_close(ours(images(), **options), plain(images(), **options))
        with pytest.raises(TypeError, match="unexpected keyword argument 'other'"):
            ours(images(), other=1)


def test_what_a_forward_assigns_stays(native):
    model = accelerate(Assigning())
    for _ in range(3):
        model(images().float())
    assert model.calls == 3 and Assigning.calls == 0


def test_layers_called_by_others_are_what_they_were(native):
    """Also while the module could run them together."""
    plain, ours = accelerated(Tail())
    up = ours.upsample(images())
    torch.testing.assert_close(up, plain.upsample(images()))
    torch.testing.assert_close(ours.conv_last(up), plain.conv_last(up))


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("name", ["upsample.0", "conv_last"])
def test_what_is_touched_later_runs_itself(backend, touch, name):
    plain, ours = accelerated(Tail())
    seen = [], []
    for model, own in zip((plain, ours), seen, strict=True):
        touch(model.get_submodule(name), own)
    seen[0].clear(), seen[1].clear()
    torch.testing.assert_close(ours(images()), plain(images()))
    assert seen[0] == seen[1] != []


@pytest.mark.parametrize("name", ["upsample", "upsample.1", "conv_last", ""])
@pytest.mark.parametrize("before", [False, True])
def test_hooks_see_what_they_would(backend, name, before):
    """Those of the time before, too."""
    model = Tail().double()
    ours = copy.deepcopy(model)
    seen = [], []
    if not before:
        accelerate(ours)
    for module, own in zip((model, ours), seen, strict=True):
        module.get_submodule(name).register_forward_hook(
            lambda module, args, output, own=own: own.append(output)
        )
    if before:
        accelerate(ours)
    torch.testing.assert_close(ours(images()), model(images()))
    assert len(seen[0]) == 1
    torch.testing.assert_close(*seen)


def test_layers_may_be_replaced_later(native):
    plain, ours = accelerated(Tail())
    for model in (plain, ours):
        model.upsample = nn.Sequential(nn.Upsample(scale_factor=2), nn.Tanh())
    assert_equal_results(ours, plain, images())
    for model in (plain, ours):
        del model.conv_last
        model.conv_last = torch.sin
    assert_equal_results(ours, plain, images())


class Recording(Layers):
    """In which order Python looks layers up, evaluates and calls."""

    def __getattr__(self, name):
        found = super().__getattr__(name)
        if name in ("up", "shuffle", "last"):
            self.events.append(name)
        return found

    def given(self, x):
        self.events.append("given")
        return x

    def forward(self, x):
        return self.last(self.shuffle(self.up(self.given(x))))


def test_the_order_of_evaluation(native):
    plain, ours = accelerated(Recording())
    for model in (plain, ours):
        model.events = []
        model(images())
    assert ours.events == plain.events == ["last", "shuffle", "up", "given"]


def forward_of(source):
    """A forward that no file has."""
    namespace = {}
    exec(source, namespace)
    return namespace["forward"]


SOURCE = "def forward(self, x):\n    return self.conv_last(self.upsample(x))\n"


def edited(monkeypatch, source):
    """A forward whose file says something else by now."""
    name = "edited.py"
    lines = source.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, name, (len(source), None, lines, name))
    namespace = {}
    exec(compile(SOURCE, name, "exec"), namespace)
    return namespace["forward"]


def decorated(function):
    @functools.wraps(function)
    def call(*args):
        return function(*args)

    return call


@pytest.mark.parametrize(
    "make",
    [
        lambda monkeypatch: forward_of(SOURCE),
        lambda monkeypatch: edited(monkeypatch, SOURCE.replace("(x))", "(x + 1))")),
        lambda monkeypatch: edited(monkeypatch, "not Python"),
        lambda monkeypatch: edited(monkeypatch, SOURCE.replace("forward", "other")),
        lambda monkeypatch: decorated(Tail.forward),
        lambda monkeypatch: lambda self, x: self.conv_last(self.upsample(x)),
    ],
    ids=["no source", "another source", "no Python", "another name", "decorated", "lambda"],
)
def test_forwards_that_cannot_be_read(calls, monkeypatch, make):
    kind = type("Unread", (Tail,), {"forward": make(monkeypatch)})
    plain, ours = accelerated(kind())
    assert type(ours) is kind
    assert reasons(ours) == {"": UNREAD}
    assert operators(ours) == ["pixel_shuffle_upsample", "conv3x3"]
    calls.clear()
    assert_equal_results(ours, plain, images())
    assert calls == ["pixel_shuffle_upsample", "conv3x3"]


def test_a_source_that_is_as_compiled_is_read(monkeypatch):
    """The counterpart of what cannot be."""
    assert reading.read(edited(monkeypatch, SOURCE), nested.run_nested).nests == (
        ((("self", "upsample"), ("self", "conv_last")), False),
    )


def test_a_forward_of_the_instance(native):
    plain, ours = Tail(), Tail()
    ours.load_state_dict(plain.state_dict())
    ours.forward = lambda x: -Tail.forward(ours, x)
    assert reasons(accelerate(ours)) == {"": UNREAD}
    torch.testing.assert_close(ours(images().float()), -plain(images().float()))


def test_a_pickle_without_the_source(calls, monkeypatch):
    """It has the forward that its class has."""
    model = accelerate(Tail(), verify=False)
    pickled = pickle.dumps(model)
    assert pickle.loads(pickled)(images().float()).shape == (2, 3, 10, 12)
    monkeypatch.setattr(classes, "_classes", {})
    monkeypatch.setattr(nested, "_read", lambda kind: None)
    other = pickle.loads(pickled)
    torch.testing.assert_close(other(images().float()), model(images().float()))
    assert calls == ["upsample_tail", "pixel_shuffle_upsample", "conv3x3", "upsample_tail"]
    assert reasons(other) == {}


def test_a_report(native):
    (row,) = accelerate.report(accelerate(Tail())).rows
    assert row == ("upsample.0", "Conv2d + PixelShuffle + Conv2d", "upsample_tail", None, None)
    rows = accelerate.report(accelerate(ActivatedByFunctions())).rows
    assert [(row.name, row.layer) for row in rows[:2]] == [
        ("first", "Conv2d + relu"),
        ("second", "Conv2d + relu"),
    ]


@pytest.mark.parametrize("make", [Tail, Derived, ActivatedByFunctions])
def test_compiled(calls, make):
    plain, ours = accelerated(make())
    expected = plain(images())
    calls.clear()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images()), expected)


def test_recorded_programs_need_pytorch_alone(native):
    plain, ours = accelerated(Tail().eval())
    x = images()
    program = torch.export.export(ours, (x,))
    names = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert names and all(name.startswith("aten.") for name in names)
    traced = torch.jit.trace(ours, x, check_trace=False)
    for model in (program.module(), traced, torch.fx.symbolic_trace(ours)):
        torch.testing.assert_close(model(x), plain(x))


def test_checkpoints_copies_and_other_parameters(calls):
    plain, ours = accelerated(Tail())
    x = images().requires_grad_()
    expected = torch.autograd.grad(plain(x).sum(), x)
    calls.clear()
    output = checkpoint(copy.deepcopy(ours), x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(output.sum(), x), expected)
    zeros = {name: torch.zeros_like(p) for name, p in ours.named_parameters()}
    assert not torch.func.functional_call(ours, zeros, (x,)).any()
    assert set(calls) == {"upsample_tail"}


def test_under_autocast(calls):
    plain, ours = accelerated(Tail())
    plain.float(), ours.float()
    calls.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(images().float()), plain(images().float())
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert calls == ["upsample_tail"]
