from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from clsd_train.config import Config, load_config
from clsd_train.errors import UserError
from clsd_train.preset import PRESETS


def test_defaults_are_edsr_baseline():
    config = load_config(None)
    assert (config.scale, config.method) == (2, "clsd")
    assert (config.model.num_blocks, config.model.channels) == (16, 64)
    assert (config.train.batch_size, config.train.learning_rate) == (16, 2e-4)
    assert config.train.milestones == (2 / 3,)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_presets_of_the_paper_are_its_protocol(scale):
    config = load_config(PRESETS[f"paper_x{scale}"])
    assert (config.scale, config.method, config.data.patch_size) == (scale, "clsd", 48)
    assert (config.model.num_blocks, config.model.channels) == (16, 64)
    assert (config.heads.taps, config.heads.blocks) == ((5, 10, 15), 5)
    train = config.train
    assert (train.iterations, train.batch_size, train.learning_rate) == (300_000, 16, 2e-4)
    assert (train.milestones, train.gamma, train.device) == ((2 / 3,), 0.5, "cuda")


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("scale: 3\ntrain:\n  iterations: 7\n  seed: 5\n")
    overrides = [
        "train.iterations=9",
        "train.learning_rate=1e-3",
        "data.train=/x",
        "heads.taps=[1]",
    ]
    config = load_config(path, overrides)
    assert (config.scale, config.train.iterations, config.train.seed) == (3, 9, 5)
    assert config.train.learning_rate == 1e-3  # PyYAML alone reads 1e-3 as a string
    assert config.data.train == (Path("/x"),)
    assert config.heads.taps == (1,)


def test_written_config_reads_back_equal(tmp_path):
    config = load_config(None, ["data.train=[/a, /b]", "train.milestones=[0.5, 0.9]", "scale=4"])
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("method", "weights"),
    [("baseline", (0, 0)), ("ds", (2.0, 0)), ("cl", (0, 0.3)), ("clsd", (2.0, 0.3))],
)
def test_method_selects_the_losses(method, weights):
    heads = {"ds_weight": 2.0, "contrast_weight": 0.3}
    assert Config(method=method, heads=heads).loss_weights == weights


def test_config_is_frozen():
    with pytest.raises(ValidationError):
        Config().scale = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.iteration=5",
            "config: unknown key 'train.iteration', nearest known is 'train.iterations'",
        ),
        ("mehtod=ds", "config: unknown key 'mehtod', nearest known is 'method'"),
        ("scale=5", "config: scale: expected 2, 3 or 4, got 5"),
        ("train.seed=-1", "config: train.seed: expected greater than or equal to 0, got -1"),
        (
            "train.learning_rate=.inf",
            "config: train.learning_rate: expected finite number, got inf",
        ),
        ("scale.x=1", "config: scale: expected 2, 3 or 4, got {'x': 1}"),
        ("heads.taps=4", "config: heads.taps: expected list, such as [1, 2], got 4"),
        ("train=5", "config: train: expected section of keys, got 5"),
        ("train.seed=x", "config: train.seed: expected valid integer, got 'x'"),
        ("data.train=", "config: data.train: expected a path, got an empty one"),
        ("output=", "config: output: expected a path, got an empty one"),
        ("scale", "config: expected an override key=value, got 'scale'"),
    ],
)
def test_bad_override_is_named(override, message):
    with pytest.raises(UserError) as error:
        load_config(None, [override])
    assert str(error.value) == message


def test_every_bad_value_is_named():
    with pytest.raises(UserError, match=r"scale: expected .*; config: train.seed: expected "):
        load_config(None, ["scale=5", "train.seed=-1"])


@pytest.mark.parametrize("text", ["- a\n", "a: [\n", "just words"])
def test_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="config: expected ") as error:
        load_config(path)
    assert "\n" not in str(error.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="none.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "text",
    ["seed: 1\n  x", "train: {seed: !!float x}", "train: !!timestamp x", "scale: 2020-13-45",
     "a: &a [*a]", "a: &a {b: *a}", "[" * 5000, "a: " * 3000, "\x00", "? [a]\n: 1", "1: 2",
     "train: {seed: 1}\ntrain: {seed: 2}", "train: {seed: 1, seed: 2}"],
)  # fmt: skip
def test_file_of_anything_is_one_line(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"^config: ") as error:
        load_config(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_a_key_that_stands_twice_is_named(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("train: {seed: 1}\ntrain: {iterations: 2}\n")
    with pytest.raises(UserError, match="expected 'train' once in .*, got it twice"):
        load_config(path)


def test_an_override_of_a_section_keeps_the_rest(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("train: {seed: 1, iterations: 9}\n")
    config = load_config(path, ["train={iterations: 2}"])
    assert (config.train.seed, config.train.iterations) == (1, 2)


def test_endless_file_is_refused():
    with pytest.raises(UserError, match="expected at most 1048576 bytes of YAML in /dev/zero"):
        load_config(Path("/dev/zero"))


def test_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(None))
    assert load_config(path) == Config()
