"""CLSD of networks as people have them: losses, copies, compilers."""

import copy
import pickle

import pytest
import torch
from support.students import STUDENTS, batch, checkpointed, hooks_of, make, network, plain_losses
from support.util import channels_last, contiguous, memory_format
from torch import nn
from torch.utils.checkpoint import checkpoint

import clsd_fast
from clsd_fast import CLSD
from clsd_fast._accelerate import sequences
from clsd_fast.distill import CONTRASTS

NAMES = sorted(STUDENTS)


def gradients(losses, model):
    trainable = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(losses["total"], trainable, allow_unused=True)


def close(model, ours, expected):
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)
    pairs = gradients(ours, model), gradients(expected, model)
    torch.testing.assert_close(*pairs, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("contrast", ["info_nce", "feature_ratio", "pos_only"])
def test_losses_and_gradients_are_those_written_out(backend, name, contrast):
    model = make(name, contrast).double()
    lr, hr = batch()
    output = model(lr, hr)
    assert torch.equal(output.sr, model.student(lr))
    close(model, output.losses, plain_losses(name, model, lr, hr))


@pytest.mark.parametrize("skip", ["first", "tap", "none"])
def test_skips(native, skip):
    model = make("RCAN", skip=skip).double()
    lr, hr = batch()
    close(model, model(lr, hr).losses, plain_losses("RCAN", model, lr, hr))


def test_without_shallow_features_the_default_is_the_tap():
    assert make("RCAN").skip == "first"
    assert make("RCAN", shallow=None).skip == "tap"
    assert make("Compact").skip == "tap"


@pytest.mark.parametrize("name", NAMES)
def test_accelerated_before_and_after(native, name):
    lr, hr = batch()
    expected = make(name).double()
    for before in (True, False):
        student = network(name).double()
        if before:
            clsd_fast.accelerate(student)
        model = CLSD(student, scale=2, head_blocks=2, **STUDENTS[name][1]).double()
        if not before:
            clsd_fast.accelerate(student)
        model.load_state_dict(expected.state_dict())
        rows = clsd_fast.accelerate.report(student).rows
        assert any(row.operator for row in rows)
        ours, theirs = model(lr, hr).losses, expected(lr, hr).losses
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(gradients(ours, model), gradients(theirs, expected))
        torch.testing.assert_close(model.eval()(lr), expected.student(lr))


def test_chains_end_at_taps_alone(native, monkeypatch):
    """Without hooks a chain goes on."""
    lengths, run = [], sequences.residual_blocks
    monkeypatch.setattr(
        sequences, "residual_blocks", lambda x, w, *args: lengths.append(len(w)) or run(x, w, *args)
    )
    student = clsd_fast.accelerate(network("MSRResNet"))
    model = CLSD(student, ("body.0",), 1, deep="upconv1", scale=2)
    lengths.clear()
    lr, hr = (x.float() for x in batch())
    model(lr, hr)
    assert lengths == [2]
    model.remove_hooks()(lr)
    assert lengths == [2, 3]


@pytest.mark.parametrize("name", NAMES)
def test_eval_is_the_student(backend, name):
    model, (lr, _) = make(name).double().eval(), batch()
    expected = network(name).double().eval()(lr)
    for head in model.heads.values():
        head.forward = None  # calling one would raise
    assert torch.equal(model(lr), expected)


def maps_kept(model):
    return [probe.seen for probe in model._hooks._probes()]


def test_maps_are_kept_during_a_step_alone():
    model, (lr, hr) = make("RCAN").double(), batch()
    assert maps_kept(model) == [None] * 4
    model(lr, hr)
    model.student(lr)
    assert maps_kept(model) == [None] * 4
    with pytest.raises(RuntimeError):
        model.heads = None
        model.student.tail = nn.Conv2d(5, 5, 1)
        model(lr, hr)
    assert maps_kept(model) == [None] * 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_have_hooks_of_their_own(name, again):
    model, (lr, hr) = make(name).double(), batch()
    losses = model(lr, hr).losses
    other = again(model)
    model.remove_hooks()
    torch.testing.assert_close(other(lr, hr).losses, losses)
    with torch.no_grad():
        for parameter in other.student.parameters():
            parameter.zero_()
    torch.testing.assert_close(losses, plain_losses(name, model, lr, hr))


@pytest.mark.parametrize("name", NAMES)
def test_what_ships_is_the_student(name):
    model, plain, (lr, hr) = make(name), network(name), batch()
    assert {key.split(".")[0] for key in model.state_dict()} == {"student", "heads"}
    assert list(model.student.state_dict()) == list(plain.state_dict())
    model(lr.float(), hr.float())
    plain.load_state_dict(model.student.state_dict(), strict=True)
    for again in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        assert torch.equal(again(model.student)(lr.float()), plain(lr.float()))
    assert len(hooks_of(model.student)) == len(maps_kept(model))
    student = model.remove_hooks()
    assert student is model.student and hooks_of(student) == []
    assert b"clsd_fast" not in pickle.dumps(student)
    with pytest.raises(ValueError, match="expected the student to call .* once, got 0 calls"):
        model(lr.float(), hr.float())


def test_state_dict_round_trip():
    """Heads are named by their taps, which have dots."""
    model, (lr, hr) = make("RCAN"), (x.float() for x in batch())
    other = make("RCAN", seed=1)
    state = model.state_dict()
    assert {key.split(".")[1] for key in state if key.startswith("heads.")} == {
        "body/0",
        "body/1",
        "target_projection",
    }
    assert not torch.equal(other(lr, hr).losses["total"], model(lr, hr).losses["total"])
    other.load_state_dict(state, strict=True)
    assert torch.equal(other(lr, hr).losses["total"], model(lr, hr).losses["total"])


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_compiled(native, name):
    model, (lr, hr) = make(name).double(), batch()
    model.student(lr)  # BasicSR's EDSR makes its mean colour as the images are, once
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        ours, expected = compiled(lr, hr).losses, model(lr, hr).losses
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(gradients(ours, model), gradients(expected, model))
        torch.testing.assert_close(compiled.eval()(lr), model.student(lr))
        compiled.train()


@pytest.mark.thorough
def test_a_compiled_student(native):
    """Also one that has run without its heads before."""
    model, (lr, hr) = make("RCAN").double(), batch()
    expected = model(lr, hr).losses
    model.student = torch.compile(model.student, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(model.eval()(lr), model.student._orig_mod(lr))
    torch.testing.assert_close(model.train()(lr, hr).losses, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("whole", [True, False])
def test_exported(native, whole):
    """With the hooks on it."""
    model, (lr, _) = make("RCAN").eval(), batch()
    lr = lr.float()
    program = torch.export.export(model if whole else model.student, (lr,))
    torch.testing.assert_close(program.module()(lr), model.student(lr))


def test_a_checkpointed_student(native):
    ours, plain, (lr, hr) = (
        checkpointed(use_reentrant=False).double(),
        make("RCAN").double(),
        batch(),
    )
    found, expected = ours(lr, hr).losses, plain(lr, hr).losses
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, ours), gradients(expected, plain))


def test_the_whole_step_is_checkpointed(native):
    model, (lr, hr) = make("RCAN").double(), batch()
    expected = gradients(model(lr, hr).losses, model)
    losses = checkpoint(lambda lr, hr: model(lr, hr).losses, lr, hr, use_reentrant=False)
    torch.testing.assert_close(gradients(losses, model), expected)


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("name", NAMES)
def test_under_autocast(native, name, contrast):
    model, (lr, hr) = make(name, contrast), batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(lr.float(), hr.float()).losses
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    losses["total"].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("of_lr", [contiguous, channels_last])
@pytest.mark.parametrize("of_hr", [contiguous, channels_last])
def test_memory_formats(native, of_lr, of_hr):
    """The heads' images have the targets', as an EDSR's."""
    model, (lr, hr) = make("MSRResNet").double(), batch()
    expected = model(lr, hr).losses
    found = model(of_lr(lr), of_hr(hr))
    torch.testing.assert_close(found.losses, expected)
    assert {memory_format(x) for x in found.head_sr} == {memory_format(of_hr(hr))}


def test_transforms(native):
    model, (lr, hr) = make("RCAN").double(), batch()
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}

    def total(parameters, lr):
        return torch.func.functional_call(model, parameters, (lr, hr)).losses["total"]

    found = torch.func.grad(total)(named, lr)
    expected = gradients(model(lr, hr).losses, model)
    torch.testing.assert_close(tuple(found.values()), expected)
    each = torch.func.vmap(lambda x: total(named, x))(torch.stack([lr, 1 - lr]))
    torch.testing.assert_close(each, torch.stack([total(named, lr), total(named, 1 - lr)]))


def test_inference_mode(native):
    model, (lr, hr) = make("RCAN").double(), batch()
    with torch.inference_mode():
        losses = model(lr, hr).losses
    torch.testing.assert_close(losses, model(lr, hr).losses)
