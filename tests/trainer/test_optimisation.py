"""Learning rates, warm starts, validation sets, and which student is kept."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support.trainer_util import refused, tiny_config, write_images

from clsd_fast import EDSR
from clsd_train import loop
from clsd_train.checkpoint import save_student
from clsd_train.config import TrainConfig
from clsd_train.errors import UserError
from clsd_train.loop import Run
from clsd_train.schedule import learning_rate


def rates(count=10, **options):
    settings = TrainConfig(iterations=count, learning_rate=0.8, **options)
    return [learning_rate(settings, iteration) for iteration in range(1, count + 1)]


def test_learning_rate_falls_at_milestones():
    assert rates(4, milestones=(0.25, 0.5)) == [0.8, 0.4, 0.2, 0.2]
    assert rates(4, milestones=(), gamma=0.1) == [0.8] * 4


def test_cosine_is_pytorch_s():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.2)
    expected = []
    for _ in range(10):
        expected += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert rates(schedule="cosine", learning_rate_end=0.2) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["milestones", "cosine"])
def test_warm_up_rises_to_the_schedule(schedule):
    plain, warm = rates(schedule=schedule), rates(schedule=schedule, warm_up=4)
    factors = [a / b for a, b in zip(warm, plain, strict=True)]
    assert factors == pytest.approx([0.25, 0.5, 0.75, *[1] * 7])


def test_a_run_past_its_end_has_the_last_rate():
    options = TrainConfig(iterations=5, schedule="cosine", learning_rate_end=1e-5)
    assert learning_rate(options, 9) == pytest.approx(1e-5)
    assert math.isfinite(learning_rate(options, 2**31))


def configure(tmp_path, output="run", data=None, **train):
    config = tiny_config(tmp_path, output, method="baseline", **train)
    return config.model_copy(update={"data": config.data.model_copy(update=data or {})})


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_student_begins_with_other_weights(tmp_path, capsys, scale):
    torch.manual_seed(5)
    source = EDSR(2, 2, 8)
    save_student(source, tmp_path / "x2.safetensors")
    config = configure(tmp_path, init=tmp_path / "x2.safetensors").model_copy(
        update={"scale": scale}
    )
    run = Run(config)
    run.close()
    fresh = Run(configure(tmp_path, "fresh").model_copy(update={"scale": scale}))
    fresh.close()
    expected = dict(source.state_dict())
    if scale != 2:
        tail = {k: v for k, v in fresh.student.state_dict().items() if k.startswith("tail.")}
        expected = {k: v for k, v in expected.items() if not k.startswith("tail.")} | tail
    torch.testing.assert_close(dict(run.student.state_dict()), expected, rtol=0, atol=0)
    said = f"clsd: train.init: {tmp_path}/x2.safetensors is of x2, the tail of x{scale} begins anew"
    assert (said in capsys.readouterr().err) == (scale != 2)


def test_weights_of_another_architecture_are_refused(tmp_path):
    save_student(EDSR(2, 3, 8, 0.5), tmp_path / "other.safetensors")
    message = r"expected num_blocks 2, res_scale 1.0 in .*, got num_blocks 3, res_scale 0.5"
    with pytest.raises(UserError, match=message):
        Run(configure(tmp_path, init=tmp_path / "other.safetensors"))
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_does_not_begin_again(tmp_path):
    save_student(EDSR(2, 2, 8), tmp_path / "x2.safetensors")
    options = {"init": tmp_path / "x2.safetensors", "iterations": 3}
    weight = Run(configure(tmp_path, **options))
    weight.train()
    (tmp_path / "x2.safetensors").unlink()
    resumed = Run(configure(tmp_path, **options), resume=True)
    resumed.close()
    assert torch.equal(resumed.student.head[0].weight, weight.student.head[0].weight)


def test_validation_sets_are_scored_by_name(tmp_path, capsys):
    sets = {name: [write_images(tmp_path / name, x=(30, 32 + i))] for i, name in enumerate("AB")}
    run = Run(configure(tmp_path, data={"val": (), "val_sets": sets}, iterations=3))
    (entry,) = [entry for entry in run.train() if entry["kind"] == "val"]
    assert entry.keys() == {
        "kind", "iteration", "psnr", "ssim", "A/psnr", "A/ssim", "B/psnr", "B/ssim"
    }  # fmt: skip
    assert entry["psnr"] == pytest.approx((entry["A/psnr"] + entry["B/psnr"]) / 2)
    err = capsys.readouterr().err
    assert "validation on A: 1 image" in err and "validation on B: 1 image" in err


def test_sets_are_named_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("hr", "2020"):
        write_images(tmp_path / name, x=(30, 32))
    run = ("train", "model.num_blocks=1", "model.channels=4", "method=baseline", "data.train=hr")
    run += ("data.patch_size=8", "train.iterations=1", "data.cache=cache", "output=run")
    loop_arguments = (*run, "data.val_sets.year=2020")
    line = refused(capsys, tmp_path, *run, "data.val_sets.a b=hr")
    assert "data.val_sets" in line and "expected name of letters, digits" in line
    line = refused(capsys, tmp_path, *run, "data.val_sets_lr.year=hr")
    assert line == "clsd: config: data: expected val_sets_lr of names in val_sets, got year"
    from clsd_train.cli import main

    main(list(loop_arguments))
    history = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    assert "year/psnr" in json.loads(history[-1])


def scored(monkeypatch, scores):
    """Let validations have these PSNRs."""
    remaining = iter(scores)
    monkeypatch.setattr(loop, "validate", lambda *_: loop.Quality(next(remaining), 0.5))


def test_the_best_student_is_kept(tmp_path, monkeypatch):
    scored(monkeypatch, [30, 32, 31])
    run = Run(configure(tmp_path, iterations=6, eval_every=2, save_every=1))
    kept = {}
    save = run.save
    monkeypatch.setattr(
        run, "save",
        lambda: (save(), kept.update({run.iteration: load_file(run.config.output / loop.STUDENT)})),
    )  # fmt: skip
    run.train()
    best = load_file(run.config.output / loop.BEST)
    torch.testing.assert_close(best, kept[4], rtol=0, atol=0)
    assert not torch.equal(best["head.0.weight"], kept[6]["head.0.weight"])


def test_a_run_in_vain_ends_and_stays_ended(tmp_path, monkeypatch, capsys):
    scored(monkeypatch, [30, 29, 28, 27, 26])
    options = {"iterations": 50, "eval_every": 2, "save_every": 50}
    run = Run(configure(tmp_path, patience=2, **options))
    run.train()
    said = "clsd: train.patience: 2 validations were no better than 30.00 dB at iteration 2, "
    assert run.iteration == 6 and said in capsys.readouterr().err
    again = Run(configure(tmp_path, patience=2, **options), resume=True)
    again.train()
    assert again.iteration == 6 and said in capsys.readouterr().err
    longer = Run(configure(tmp_path, patience=4, **options), resume=True)
    longer.train()
    assert longer.iteration == 10


def test_average_is_validated_written_and_resumed(tmp_path):
    options = {"ema": 0.5, "save_every": 2, "iterations": 4, "milestones": ()}
    straight = Run(configure(tmp_path, "straight", **options))
    expected = straight.train()
    stopped = Run(configure(tmp_path, **{**options, "iterations": 2}))
    stopped.train()
    resumed = Run(configure(tmp_path, **options), resume=True)
    entries = [e for e in resumed.train() if e["kind"] == "val"]
    assert entries[-1] == [e for e in expected if e["kind"] == "val"][-1]
    for run in (straight, resumed):
        written = load_file(run.config.output / loop.STUDENT)
        torch.testing.assert_close(written, dict(straight.student.state_dict()), rtol=0, atol=0)
        assert run.student is not run.model.student


def test_an_average_may_begin_on_the_way(tmp_path):
    Run(configure(tmp_path, iterations=2)).train()
    run = Run(configure(tmp_path, iterations=3, ema=0.5), resume=True)
    assert torch.equal(run.student.head[0].weight, run.model.student.head[0].weight)
    run.train()
    assert not torch.equal(run.student.head[0].weight, run.model.student.head[0].weight)


def test_parts_divide_the_batch(capsys, tmp_path):
    line = refused(capsys, tmp_path, "train", "train.accumulate=3", "data.train=x")
    assert "config: train: expected a batch_size that accumulate=3 divides, got 16" in line
