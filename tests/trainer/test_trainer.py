import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.trainer_util import contents, noise, tiny_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clsd_fast import EDSR
from clsd_train import batches, loop
from clsd_train.build import build_model
from clsd_train.checkpoint import load_student, save_student
from clsd_train.config import load_config
from clsd_train.errors import UserError
from clsd_train.loop import Run, validate
from clsd_train.upscale import receptive_radius, upscale


def losses(entries):
    """The history without what a clock says."""
    return [{k: v for k, v in entry.items() if k != "step_seconds"} for entry in entries]


def assert_same_weights(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class InterruptedRunError(Exception):
    pass


def interrupt_at(monkeypatch, iteration):
    """Let the sampler fail at an iteration, as a run that is killed there."""

    def make(*arguments):
        sampler = make_sampler(*arguments)

        class Failing:
            def fill(self, number, *batch):
                if number == iteration:
                    raise InterruptedRunError
                sampler.fill(number, *batch)

        return Failing()

    make_sampler = batches.make_sampler
    monkeypatch.setattr(batches, "make_sampler", make)


@pytest.mark.parametrize("method", ["baseline", "ds", "cl", "clsd"])
def test_method_trains_its_losses(tmp_path, method):
    run = Run(tiny_config(tmp_path, method=method, iterations=2))
    before = {name: p.clone() for name, p in run.model.named_parameters()}
    first = run.train()[0]
    expected = {"baseline": set(), "ds": {"ds"}, "cl": {"cl"}, "clsd": {"ds", "cl"}}[method]
    assert first.keys() & {"rec", "ds", "cl"} == {"rec"} | expected
    still = [n for n, p in run.model.named_parameters() if torch.equal(p, before[n])]
    assert all(p.requires_grad is False for n, p in run.model.named_parameters() if n in still)


def test_plain_training_is_the_student_alone(tmp_path):
    model = build_model(tiny_config(tmp_path, method="baseline"))
    assert all(name.startswith("student.") for name, _ in model.named_parameters())


def test_plain_training_asks_for_no_taps():
    overrides = ["method=baseline", "model.num_blocks=2", "model.channels=8"]
    assert build_model(load_config(None, overrides)).student.num_blocks == 2


def test_methods_start_from_the_same_student(tmp_path):
    plain, clsd = (build_model(tiny_config(tmp_path, method=m)) for m in ("baseline", "clsd"))
    assert_same_weights(plain.student, clsd.student)


def test_same_seed_is_bit_equal_and_another_is_not(tmp_path):
    first, second, other = (
        Run(tiny_config(tmp_path, name, seed=seed))
        for name, seed in (("first", 0), ("second", 0), ("other", 1))
    )
    entries = losses(first.train())
    assert losses(second.train()) == entries
    assert_same_weights(first.model, second.model)
    assert losses(other.train()) != entries


@pytest.mark.parametrize("contrast", ["info_nce", "patch_nce"])
def test_resumed_run_is_bit_equal(tmp_path, monkeypatch, contrast):
    def configure(output):
        config = tiny_config(tmp_path, output, milestones=(0.34, 0.67))
        heads = config.heads.model_copy(update={"contrast": contrast, "num_patches": 8})
        return config.model_copy(update={"heads": heads})

    straight = Run(configure("straight"))
    expected = losses(straight.train())
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(InterruptedRunError):
            Run(configure("broken")).train()
    torch.manual_seed(99)  # another process has another generator
    resumed = Run(configure("broken"), resume=True)
    assert resumed.iteration == 3
    assert losses(resumed.train()) == expected
    assert_same_weights(resumed.model, straight.model)
    written = (tmp_path / "broken" / loop.HISTORY).read_text().splitlines()
    assert losses(map(json.loads, written)) == expected


def test_learning_rate_halves_at_milestones(tmp_path):
    config = tiny_config(tmp_path, method="baseline", learning_rate=8e-4, milestones=(0.34, 0.67))
    entries = [e for e in Run(config).train() if e["kind"] == "train"]
    assert [e["learning_rate"] for e in entries] == [8e-4, 8e-4, 4e-4, 4e-4, 2e-4, 2e-4]


def test_resumed_run_follows_the_new_schedule(tmp_path):
    Run(tiny_config(tmp_path, method="baseline", iterations=3)).train()
    longer = {"iterations": 6, "learning_rate": 8e-4, "milestones": (0.67,)}
    entries = Run(tiny_config(tmp_path, method="baseline", **longer), resume=True).train()
    rates = [e["learning_rate"] for e in entries if e["kind"] == "train" and e["iteration"] > 3]
    assert rates == [8e-4, 4e-4, 4e-4]


def test_training_lowers_the_loss(tmp_path):
    config = tiny_config(tmp_path, method="baseline", iterations=40, learning_rate=3e-3)
    entries = [e["rec"] for e in Run(config).train() if e["kind"] == "train"]
    assert np.mean(entries[-5:]) < 0.9 * np.mean(entries[:5])


def test_output_folder_holds_the_run(tmp_path):
    config = tiny_config(tmp_path)
    run = Run(config)
    entries = run.train()
    output = config.output
    names = {"config.yaml", "history.jsonl", "state.pt", "student.safetensors", "tensorboard"}
    names.add("best.safetensors")
    assert {path.name for path in output.iterdir()} == names
    assert load_config(output / "config.yaml") == config
    assert [e["iteration"] for e in entries if e["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    scores = [e for e in entries if e["kind"] == "val"]
    assert [e["iteration"] for e in scores] == [3, 6]
    assert scores[-1]["psnr"] == validate(run.student, run.val_sets[""]).psnr
    board = EventAccumulator(str(output / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("val/psnr")] == [3, 6]


def test_student_file_is_the_student_alone(tmp_path):
    run = Run(tiny_config(tmp_path))
    run.train()
    path = run.config.output / loop.STUDENT
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(run.model.student.state_dict())
    assert metadata.keys() == {
        "scale", "num_blocks", "channels", "res_scale", "value_range", "clsd_fast"
    }  # fmt: skip
    assert_same_weights(load_student(path), run.model.student)


@pytest.mark.parametrize("poisoned", ["loss", "weights"])
def test_non_finite_run_stops_and_keeps_the_last_checkpoint(tmp_path, monkeypatch, poisoned):
    run = Run(tiny_config(tmp_path))
    step = run._step

    def poison():
        weight = run.model.student.head[0].weight
        if run.iteration == 4 and poisoned == "loss":
            weight.data.fill_(torch.nan)
        step()
        if run.iteration == 6:  # a finite loss, then a step that is not
            weight.data.fill_(torch.inf)

    monkeypatch.setattr(run, "_step", poison)
    kept = {}
    save = run.save
    monkeypatch.setattr(run, "save", lambda: (save(), kept.update(contents(run.config.output))))
    message = {"loss": "a finite loss, got nan at iteration 5", "weights": "finite weights"}
    with pytest.raises(UserError, match=message[poisoned]):
        run.train()
    for name in (loop.STATE, loop.STUDENT):
        assert (run.config.output / name).read_bytes() == kept[run.config.output / name]
    assert Run(run.config, resume=True).iteration == 3


@pytest.mark.parametrize("due", ["log_every", "eval_every", "save_every"])
def test_a_loss_that_is_not_finite_is_found_before_anything_is_kept(tmp_path, monkeypatch, due):
    options = {"iterations": 9, "log_every": 9, "eval_every": 9, "save_every": 9, due: 5}
    run = Run(tiny_config(tmp_path, **options))
    step = run._step

    def poison():
        if run.iteration == 2:
            run.model.student.head[0].weight.data.fill_(torch.nan)
        step()

    monkeypatch.setattr(run, "_step", poison)
    with pytest.raises(UserError, match="a finite loss, got nan at iteration 3; nothing was saved"):
        run.train()
    assert run.iteration == 5
    assert [entry["iteration"] for entry in run.history.entries] == [1]
    assert not (run.config.output / loop.STATE).exists()


def test_float16_without_gradients_is_said(tmp_path):
    options = {"iterations": 40, "log_every": 20, "eval_every": 99, "save_every": 99}
    run = Run(tiny_config(tmp_path, precision="fp16", **options))
    run.model.student.head[0].weight.register_hook(lambda grad: grad / 0)
    message = r"a loss scale of at least 1, got 0.0625 at iteration 20; nothing"  # 2 ** (16 - 20)
    with pytest.raises(UserError, match=message):
        run.train()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_of_16_bits_resumes_bit_equal_between_log_entries(tmp_path, monkeypatch, precision):
    """Also the losses that are summed, and the loss scale."""
    options = {"precision": precision, "log_every": 4, "save_every": 3, "iterations": 8}
    straight = Run(tiny_config(tmp_path, "straight", **options))
    expected = losses(straight.train())
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(InterruptedRunError):
            Run(tiny_config(tmp_path, "broken", **options)).train()
    resumed = Run(tiny_config(tmp_path, "broken", **options), resume=True)
    assert resumed.iteration == 3
    assert losses(resumed.train()) == expected
    assert_same_weights(resumed.model, straight.model)


def test_images_on_the_device_make_the_same_run(tmp_path):
    first, second = tiny_config(tmp_path, "first"), tiny_config(tmp_path, "second")
    data = second.data.model_copy(update={"residency": "device"})
    expected = losses(Run(first).train())
    assert losses(Run(second.model_copy(update={"data": data})).train()) == expected


def test_used_output_folder_is_refused(tmp_path):
    config = tiny_config(tmp_path, iterations=1)
    Run(config).train()
    before = contents(tmp_path)
    with pytest.raises(UserError, match="expected an empty or new output folder"):
        Run(config)
    assert contents(tmp_path) == before


def test_state_of_another_model_is_refused(tmp_path):
    Run(tiny_config(tmp_path, iterations=1)).train()
    with pytest.raises(UserError, match=r"got heads\..* 32 in all unexpected"):
        Run(tiny_config(tmp_path, method="baseline", iterations=1), resume=True)


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_checkpoint_round_trip(tmp_path, scale, value_range):
    student = EDSR(scale, 3, 8, 0.5, value_range)
    save_student(student, tmp_path / "student.safetensors")
    loaded = load_student(tmp_path / "student.safetensors")
    assert_same_weights(loaded, student)
    assert (loaded.scale, loaded.num_blocks, loaded.channels) == (scale, 3, 8)
    assert (loaded.res_scale, loaded.value_range) == (0.5, value_range)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_tiles_change_nothing(scale):
    torch.manual_seed(0)
    student = EDSR(scale, 2, 8).eval()
    image = noise(45, 52)
    whole, tiled = upscale(student, image, tile=512), upscale(student, image, tile=16)
    # A sum in another order may fall on the other side of a rounding, rarely; a seam would not.
    difference = np.abs(whole.astype(int) - tiled)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_receptive_radius_covers_the_gradient(scale):
    student = EDSR(scale, 2, 4).double()
    lr = torch.rand(1, 3, 41, 41, dtype=torch.float64, requires_grad=True)
    middle = 20 * scale
    student(lr)[..., middle : middle + scale, middle : middle + scale].sum().backward()
    rows = lr.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    reach = max(20 - rows.min().item(), rows.max().item() - 20)
    assert reach <= receptive_radius(student) <= reach + 1


def test_value_range_one_gives_the_same_image():
    large, small = EDSR(2, 2, 8, value_range=255.0), EDSR(2, 2, 8, value_range=1.0)
    means = {name: v for name, v in small.state_dict().items() if "mean" in name}
    small.load_state_dict({**large.state_dict(), **means})
    # Biases are the only part that does not scale with the input.
    for module in (large, small):
        for name, parameter in module.named_parameters():
            if name.endswith("bias") and "mean" not in name:
                torch.nn.init.zeros_(parameter)
    difference = upscale(large, noise(12, 12)).astype(int) - upscale(small, noise(12, 12))
    assert np.abs(difference).max() <= 1
