"""The step of the optimisation: precisions, and that a CUDA graph can hold it."""

import copy

import pytest
import torch
from support import fake_graph
from support.trainer_util import tiny_config
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clsd_train.build import build_model
from clsd_train.graph import WARM_UP, Graphed
from clsd_train.meter import Meter
from clsd_train.step import Step


def make_step(tmp_path, method="clsd", contrast="info_nce", **train):
    config = tiny_config(tmp_path, method=method, **train)
    heads = config.heads.model_copy(update={"contrast": contrast, "num_patches": 8})
    config = config.model_copy(update={"heads": heads})
    model = build_model(config).train()
    step = Step(model, model.student, config.train)
    step.rate.fill_(1e-3)
    return step


def make_batch(seed, count=4):
    generator = torch.Generator().manual_seed(seed)
    sizes = (8, 16)
    return [
        torch.randint(0, 256, (count, s, s, 3), dtype=torch.uint8, generator=generator)
        for s in sizes
    ]


def make_waves(seed, count=4):
    """A batch with something to learn: waves, and their means of 2 x 2 pixels."""
    generator = torch.Generator().manual_seed(seed)
    slopes, phases = torch.rand(2, count, 1, 1, 3, generator=generator)
    y, x = torch.arange(16.0).view(-1, 1, 1), torch.arange(16.0).view(1, -1, 1)
    hr = 127.5 + 127.5 * torch.sin(slopes * x + (1 - slopes) * y + 6 * phases)
    lr = hr.unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean((2, 4))
    return lr.round().byte(), hr.round().byte()


def state_of(step):
    return copy.deepcopy([step.model.state_dict(), step.state_dict(), torch.get_rng_state()])


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


GRAPHS = [
    {"method": "baseline"},
    {"contrast": "info_nce"},
    {"contrast": "patch_nce"},
    {"contrast": "feature_ratio"},
    {"contrast": "pos_only"},
    {"precision": "bf16"},
    {"precision": "fp16", "clip": 0.1},
    {"accumulate": 2, "clip": 0.1, "ema": 0.9},
]


@pytest.mark.parametrize(
    "options", GRAPHS, ids=lambda options: " ".join(map(str, options.values()))
)
def test_a_graph_of_the_step_is_the_step(tmp_path, backend, options):
    """Batch and learning rate change in place; nothing else tells one step from the next."""
    batches = [make_batch(seed) for seed in range(WARM_UP + 3)]
    states = []
    for graphed in (False, True):
        step = make_step(tmp_path, **options)
        batch = [images.clone() for images in batches[0]]

        def update(step=step, batch=batch):
            step.update(*batch)

        advance = update
        if graphed:
            advance = Graphed(update, pytest.fail, fake_graph.capture, lambda warm: warm())
        for number, images in enumerate(batches):
            for target, source in zip(batch, images, strict=True):
                target.copy_(source)
            step.rate.fill_(1e-3 / (1 + number))
            advance()
        states.append(state_of(step))
    assert_same(*states)


def test_what_waits_is_not_captured(tmp_path, capsys):
    """It is said once, and the steps are the same without a graph."""
    states = []
    for graphed in (False, True):
        step = make_step(tmp_path, precision="fp16")
        batch = make_batch(0)

        def update(step=step, batch=batch):
            step.update(*batch)
            step.model.student.head[0].bias.sum().item()

        advance = update
        if graphed:
            advance = Graphed(update, step.renew, fake_graph.capture, lambda warm: warm())
        for _ in range(WARM_UP + 2):
            advance()
        states.append(state_of(step))
    assert_same(*states)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("clsd: train: no CUDA graph, steps are slower: operation not permitted")


def train_steps(step, count):
    """Losses of steps on one batch."""
    batch, totals = make_batch(0), []
    for _ in range(count):
        step.meter.reset()
        step.update(*batch)
        totals.append(step.meter.read().losses["total"])
    return totals


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_parameters_stay_float32_beside_16_bit_images(tmp_path, precision):
    step = make_step(tmp_path, precision=precision)
    seen = set()
    step.model.student.body[0].register_forward_hook(
        lambda module, inputs, output: seen.add(output.dtype)
    )
    totals = train_steps(step, 10)
    assert seen == {torch.bfloat16 if precision == "bf16" else torch.float16}
    kept = [p for p in step.model.parameters() if p.requires_grad]
    kept += [v for values in step.optimizer.state.values() for v in values.values()]
    assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert totals[-1] < totals[0]


@pytest.mark.thorough
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_16_bit_training_keeps_to_float32_s_loss(tmp_path, precision):
    """That of the images: so small a contrastive loss is chaotic, in float32 from one instruction
    set to another."""

    def last_losses(precision):
        step = make_step(tmp_path, precision=precision)
        step.rate.fill_(3e-4)
        for number in range(200):
            if number == 150:
                step.meter.reset()
            step.update(*make_waves(number, 16))
        losses = step.meter.read().losses
        return [losses["rec"], losses["ds"]]

    assert last_losses(precision) == pytest.approx(last_losses("float32"), rel=0.02)


def test_float16_leaves_out_a_step_whose_gradients_are_infinite(tmp_path):
    step = make_step(tmp_path, method="baseline", precision="fp16")
    train_steps(step, 1)
    before = copy.deepcopy(step.model.state_dict())
    weight = step.model.student.head[0].weight
    handle = weight.register_hook(lambda grad: grad / 0)
    scale = step.loss_scale
    train_steps(step, 1)
    assert_same(step.model.state_dict(), before)
    assert step.loss_scale == scale / 2
    handle.remove()
    train_steps(step, 1)
    assert not torch.equal(weight, before["student.head.0.weight"])


def test_goes_on_from_a_state_in_another_memory_format(tmp_path):
    kept, resumed = (make_step(tmp_path, method="baseline") for _ in range(2))
    resumed.model.to(memory_format=torch.channels_last)
    train_steps(kept, 2)
    resumed.model.load_state_dict(kept.model.state_dict())
    resumed.load_state_dict(copy.deepcopy(kept.state_dict()))
    for step in (kept, resumed):
        train_steps(step, 2)
    torch.testing.assert_close(resumed.model.state_dict(), kept.model.state_dict())
    torch.testing.assert_close(resumed.optimizer.state_dict(), kept.optimizer.state_dict())


@pytest.mark.parametrize("bad", [None, 2, 3])
def test_meter_knows_the_first_step_that_was_not_finite(bad):
    meter = Meter(torch.device("cpu"))
    for step in (1, 2, 3, 4):
        value = torch.tensor(torch.inf if step == bad else float(step))
        meter.add([{"rec": value, "total": 2 * value}])
    losses, steps, finite_steps = meter.read()
    assert (steps, finite_steps) == (4, 4 if bad is None else bad - 1)
    expected = 2.5 if bad is None else torch.inf
    assert losses == {"rec": expected, "total": 2 * expected}
    meter.reset()
    meter.add([{"rec": torch.tensor(7.0), "total": torch.tensor(8.0)}])
    assert meter.read() == ({"rec": 7, "total": 8}, 1, 1)


@pytest.mark.parametrize("method", ["baseline", "ds"])
def test_parts_of_a_batch_are_the_batch(tmp_path, method):
    whole, parts = (make_step(tmp_path, method, batch_size=4, accumulate=n) for n in (1, 4))
    batch = make_batch(0)
    for step in (whole, parts):
        step.update(*batch)
    assert parts.meter.read().losses == pytest.approx(whole.meter.read().losses, rel=1e-5)
    expected = dict(whole.model.named_parameters())
    for name, parameter in parts.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_the_norm_of_the_gradients_is_clipped(tmp_path, precision):
    free, clipped = (make_step(tmp_path, precision=precision, clip=clip) for clip in (None, 0.01))
    for step in (free, clipped):
        step.update(*make_batch(0))
    norms = [
        torch.stack([p.grad.norm() for p in s.model.parameters() if p.requires_grad]).norm().item()
        for s in (free, clipped)
    ]
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_average_is_pytorch_s(tmp_path):
    step = make_step(tmp_path, ema=0.9)
    expected = AveragedModel(step.model.student, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    expected.update_parameters(step.model.student)  # its first call copies
    for seed in range(3):
        step.update(*make_batch(seed))
        expected.update_parameters(step.model.student)
    assert_same(step.student.state_dict(), expected.module.state_dict())
    assert not torch.equal(step.student.head[0].weight, step.model.student.head[0].weight)
