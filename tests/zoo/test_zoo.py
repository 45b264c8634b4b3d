"""Networks as people have them: accelerated, they compute and are what they were."""

import copy
import multiprocessing

import measure
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from support import zoo_ranks
from support.grids import cover
from support.util import channels_last, contiguous, rand
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from zoo import ZOO

import clsd_fast
from clsd_fast._accelerate import classes

#: What runs the layers of each at x2, in the order of the modules.
OPERATORS = {
    "EDSR": ["conv3x3", "residual_blocks", "conv3x3", "upsample_tail"],
    "BasicSREDSR": ["conv3x3", "residual_blocks", "conv3x3", "upsample_tail"],
    "MSRResNet": [
        "conv3x3",
        "residual_blocks",
        "pixel_shuffle_upsample",
        "conv3x3",
        "conv3x3",
    ],
    "KAIREDSR": ["conv3x3", "residual_blocks", "conv3x3", "upsample_tail"],
    "RCAN": ["conv3x3", *["conv3x3"] * 11, "upsample_tail"],
    "CARN": ["conv3x3"] * 12,
    "DRLN": [*["conv3x3"] * 5, "upsample_tail"],
    "RDN": [*["conv3x3"] * 9, "upsample_tail"],
    "RRDBNet": ["conv3x3"] * 20,
    "RFDN": ["conv3x3"] * 10,
    "VDSR": ["conv3x3"] * 5,
    "Compact": ["conv3x3"] * 4,
    "ArtCNN": [*["conv3x3"] * 5],
    "NinaSR": ["conv3x3"] * 6,
}
EVERY = sorted(ZOO)
#: Of sequences, of nested calls, of a loop.
QUICK = ("EDSR", "RFDN", "Compact")
FEW = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.thorough) for name in EVERY]


@pytest.fixture(autouse=True)
def without_amx(monkeypatch):
    """Where oneDNN is the faster one, 16-bit images would be left to it."""
    monkeypatch.setattr(classes, "_HAS_AMX", False)


def made(name, **options):
    """A network, and an accelerated copy."""
    torch.manual_seed(0)
    plain = ZOO[name](**options)
    return plain, clsd_fast.accelerate(copy.deepcopy(plain))


def images(seed=0):
    return rand(2, 3, 9, 8, seed=seed).sigmoid()


def results(model, x, layout=contiguous):
    """The output, and the gradients of images and parameters."""
    x = layout(x).requires_grad_()
    output = model(x)
    grad = layout(rand(*output.shape, seed=3).to(output))
    leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@cover(
    name=EVERY,
    scale=[2, 3, 4],
    dtype=[torch.float32, torch.bfloat16, torch.float64],
    layout=[contiguous, channels_last],
)
def test_results(native, name, scale, dtype, layout):
    """Held to the rule for deep networks (`measure.error_over_bound`)."""
    plain, ours = made(name, scale=scale)
    memory_format = torch.channels_last if layout is channels_last else torch.contiguous_format
    for model in (plain, ours):
        model.to(dtype=dtype, memory_format=memory_format)
    x = images().to(dtype)
    reference = results(copy.deepcopy(plain).double(), x.double())
    found, theirs = results(ours, x, layout), results(plain, x, layout)
    for mine, other in zip(found, theirs, strict=True):
        assert (mine.dtype, mine.shape) == (other.dtype, other.shape)
    if dtype == torch.float64:
        torch.testing.assert_close(found, reference, rtol=1e-9, atol=1e-9)
    else:
        assert measure.error_over_bound(found, reference, theirs, dtype) <= measure.LIMIT


@pytest.mark.parametrize("name", EVERY)
def test_operators(native, name):
    plain, ours = made(name)
    report = clsd_fast.accelerate.report(ours)
    assert [row.operator for row in report.rows if row.operator] == OPERATORS[name]
    assert list(ours.state_dict()) == list(plain.state_dict())
    assert repr(ours) == repr(plain)
    restored = clsd_fast.restore(ours)
    assert [type(m) for m in restored.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize("name", FEW)
def test_compiled(native, name):
    plain, ours = made(name)
    if name == "BasicSREDSR":
        ours(images().float())  # its mean colour is made as the images are, once
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    reference = results(copy.deepcopy(plain).double(), images())
    x = images().float()
    found, theirs = results(compiled, x), results(plain, x)
    assert measure.error_over_bound(found, reference, theirs) <= measure.LIMIT


@pytest.mark.parametrize("name", [p for p in FEW if p.values != ("BasicSREDSR",)])
def test_exported(native, name):
    """But for a network that assigns to itself in its forward, which no program may."""
    plain, ours = made(name)
    x = images().float()
    program = torch.export.export(ours.eval(), (x,))
    torch.testing.assert_close(program.module()(x), plain.eval()(x))


@pytest.mark.parametrize("name", FEW)
def test_moving_averages(native, name):
    averages = []
    for model in made(name):
        model.double()
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        optimizer = torch.optim.SGD(model.parameters(), 1e-3)
        for step in range(2):
            optimizer.zero_grad()
            model(images(seed=step)).square().mean().backward()
            optimizer.step()
            average.update_parameters(model)
        averages.append((average(images()), average.state_dict()))
    torch.testing.assert_close(*averages)


@pytest.mark.parametrize("name", FEW)
def test_checkpointed(native, name):
    """The whole network, and its body in segments where that is a sequence."""
    plain, ours = (model.double() for model in made(name))
    expected = results(plain, images())
    whole = Checkpointed(ours, lambda x: checkpoint(ours, x, use_reentrant=False))
    torch.testing.assert_close(results(whole, images()), expected)
    body = getattr(ours, "body", None)
    if isinstance(body, torch.nn.Sequential) and len(body) > 1:
        x = rand(2, 16, 6, 5)
        segments = Checkpointed(
            body, lambda x: checkpoint_sequential(body, 2, x, use_reentrant=False)
        )
        torch.testing.assert_close(results(segments, x), results(plain.body, x))


class Checkpointed(torch.nn.Module):
    def __init__(self, model, call):
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize("name", FEW)
def test_under_autocast(native, name):
    plain, ours = made(name)
    reference = results(copy.deepcopy(plain).double(), images())
    x = images().float()
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = results(ours, x), results(plain, x)
    assert [t.dtype for t in found] == [t.dtype for t in theirs]
    assert measure.error_over_bound(found, reference, theirs, torch.bfloat16) <= measure.LIMIT


@pytest.mark.parametrize("name", FEW)
def test_inference_mode(native, name):
    plain, ours = (model.double() for model in made(name))
    with torch.inference_mode():
        torch.testing.assert_close(ours(images()), plain(images()))


@pytest.mark.thorough
@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo in this PyTorch"
)
def test_data_parallel(native, tmp_path):
    multiprocessing.set_forkserver_preload(["torch"])
    mp.start_processes(
        zoo_ranks.worker, (2, tmp_path / "store"), nprocs=2, start_method="forkserver"
    )
