"""The command line: order, paths, help, streams and what a start costs."""

import os
import subprocess
import sys

import pytest
import yaml
from support.trainer_util import refused, write_images

import clsd_fast
from clsd_train import cli
from clsd_train.checkpoint import save_student
from clsd_train.cli import main
from clsd_train.config import Config, load_config
from clsd_train.preset import PRESETS

TINY = "model: {num_blocks: 1, channels: 4}\nmethod: baseline\noutput: run\n"
TINY += "data: {train: hr, patch_size: 8, cache: cache}\ntrain: {iterations: 1, batch_size: 1}\n"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with c.yaml, images in hr and a student."""
    write_images(tmp_path / "hr", a=(40, 48), b=(36, 32))
    (tmp_path / "c.yaml").write_text(TINY)
    save_student(clsd_fast.EDSR(2, 1, 4), tmp_path / "student.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def process(*arguments, stdout=subprocess.PIPE, **variables):
    """The command as a process, with environment variables."""
    return subprocess.run(
        [sys.executable, "-m", "clsd_train", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        stdout=stdout, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip


def settings_of(folder):
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.mark.parametrize(
    "order",
    [
        ("c.yaml", "train.seed=5", "--resume"),
        ("--resume", "train.seed=5", "c.yaml"),
        ("c.yaml", "--resume", "train.seed=5"),
        ("train.seed=5", "--resume", "c.yaml"),
    ],
)
def test_settings_and_options_in_any_order(here, order):
    main(["train", *order])
    assert settings_of(here / "run")["train"]["seed"] == 5


@pytest.mark.parametrize(
    "order",
    [
        ("student.safetensors", "hr", "--output", "sr", "--overwrite"),
        ("--output", "sr", "student.safetensors", "--overwrite", "hr"),
        ("student.safetensors", "--overwrite", "--output", "sr", "hr/a.png", "hr/b.png"),
        ("--overwrite", "--output=sr", "--", "student.safetensors", "hr"),
    ],
)
def test_images_and_options_in_any_order(here, order):
    main(["upscale", *order])
    assert sorted(path.name for path in (here / "sr").iterdir()) == ["a_x2.png", "b_x2.png"]


def test_lr_images_in_any_order(here):
    for folder, name, size in (("first", "a", (20, 24)), ("second", "b", (18, 16))):
        write_images(here / folder, **{name: size})
    for number, order in enumerate(
        [
            ("student.safetensors", "hr", "--lr", "first", "--lr", "second"),
            ("student.safetensors", "hr", "--lr", "first", "second"),
            ("--lr", "first", "second", "student.safetensors", "hr"),
            ("--lr", "first", "--lr", "second", "student.safetensors", "hr"),
        ]
    ):
        main(["eval", "--json", f"{number}.json", *order])
        assert (here / f"{number}.json").read_text() == (here / "0.json").read_text()


def test_folders_that_lr_takes_are_named(here, capsys):
    line = refused(capsys, here, "eval", "student.safetensors", "--lr", "hr", "hr")
    assert line.endswith("expected a folder of HR images, got none (--lr takes all of hr, hr)")
    assert "expected weights of a student" in refused(capsys, here, "eval", "--lr", "hr")


@pytest.mark.parametrize("name", ["[red]", "[b]x", "a b"])
def test_an_image_is_shown_by_its_name(here, capsys, name):
    (here / "hr" / "a.png").rename(here / "hr" / f"{name}.png")
    main(["eval", "student.safetensors", "hr"])
    assert name in capsys.readouterr().out


def test_no_part_of_a_long_name_is_left_out(here, capsys):
    name = "".join(f"{number:03}" for number in range(60))
    (here / "hr" / "a.png").rename(here / "hr" / f"{name}.png")
    main(["eval", "student.safetensors", "hr"])
    cells = [
        line.split("│")[1].strip() for line in capsys.readouterr().out.splitlines() if "│" in line
    ]
    assert name in "".join(cells)


@pytest.mark.parametrize("folder", ["lr=1e-4", "scale=3", "train.learning_rate=1e-4", "a b", "[x]"])
def test_a_file_is_a_file_whatever_its_path(here, folder):
    (here / folder).mkdir()
    (here / folder / "c.yaml").write_text(TINY)
    main(["train", f"{folder}/c.yaml", "train.seed=5"])
    assert settings_of(here / "run")["train"]["seed"] == 5
    assert settings_of(here / "run")["scale"] == 2


def test_a_preset_is_no_file(here, capsys):
    """A file of its name is meant with a folder or a suffix."""
    for name in ("quick", "quick.yaml"):
        (here / name).write_text(TINY)
    expected = load_config(PRESETS["quick"], ["train.seed=5"])
    main(["config", "train.seed=5", "quick"])
    assert capsys.readouterr().out == expected.to_yaml()
    for name in ("./quick", "quick.yaml"):
        main(["config", name])
        assert yaml.safe_load(capsys.readouterr().out)["output"] == "run"
    main(["train", "quick", "data.train=hr", "data.cache=cache", "model.channels=4",
          "data.patch_size=8", "train.iterations=1", "--resume"])  # fmt: skip
    assert settings_of(here / "experiments" / "quick")["heads"]["taps"] == [2, 4, 6]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["none.yaml"], "expected a readable file, got none.yaml: No such file"),
        (["lr=1/c.yaml"], "expected a readable file, got lr=1/c.yaml: No such file"),
        (["scale"], "expected a YAML file, a preset (paper_x2, paper_x3, paper_x4, quick) or an "
         "override key=value, got 'scale'"),
        (["c.yaml", "d.yaml"], "expected one YAML file or preset, got 'c.yaml' and 'd.yaml'"),
        (["quick", "d.yaml"], "expected one YAML file or preset, got 'quick' and 'd.yaml'"),
        (["hr"], "expected a readable file, got hr: Is a directory"),
        (["*.yml"], "expected a path, got *.yml, which nothing matches"),
        (["data.train=*/none"], "expected a path, got */none, which nothing matches"),
        (["data.train="], "data.train: expected a path, got an empty one"),
        (["output="], "output: expected a path, got an empty one"),
        (["data.train=c.yaml"], "expected a folder of images, got c.yaml: a file"),
        (["data.train=2020"], "expected a folder of images, got 2020: no such folder"),
        (["--resum"], "unrecognized arguments: --resum"),
    ],
)  # fmt: skip
def test_what_is_no_setting_is_named(here, capsys, settings, words):
    assert words in refused(capsys, here, "train", *settings)


@pytest.mark.parametrize(
    "name", ["2020", "1e3", "null", "no", "2020-01-01", "0x10", "[x]", "a: b", "#"]
)
def test_a_folder_is_what_it_is_called(here, name):
    (here / "hr").rename(here / name)
    main(["train", "c.yaml", f"data.train={name}"])
    assert settings_of(here / "run")["data"]["train"] == [str(here / name)]


@pytest.mark.parametrize("name", ["2020", "1_000", "no", "2020-01-01"])
def test_a_folder_in_a_file_is_what_it_is_called(here, name):
    (here / "hr").rename(here / name)
    (here / "c.yaml").write_text(TINY.replace("train: hr", f"train: {name}"))
    main(["train", "c.yaml"])
    assert settings_of(here / "run")["data"]["train"] == [str(here / name)]


def test_home_and_globs(here, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(here))
    config = load_config(None, ["data.train=~/h?", "data.val=[~/hr, ~/h*]", "output=~/run"])
    assert config.data.train == (here / "hr",)
    assert config.data.val == (here / "hr", here / "hr")
    assert config.output == here / "run"
    main(["upscale", "~/*.safetensors", "~/hr/*.png", "--output", "~/sr"])
    assert sorted(path.name for path in (here / "sr").iterdir()) == ["a_x2.png", "b_x2.png"]
    save_student(clsd_fast.EDSR(2, 1, 4), here / "other.safetensors")
    line = refused(capsys, here, "info", "~/*.safetensors")
    assert "expected one path, got ~/*.safetensors, which 2 match" in line


def test_an_empty_path_is_refused(here, capsys):
    """As a script hands it on whose variable is not set."""
    for arguments in (["info", ""], ["eval", "student.safetensors", ""],
                      ["upscale", "student.safetensors", "hr", "--output", ""],
                      ["demo", "--output", ""]):  # fmt: skip
        assert "expected a path, got an empty one" in refused(capsys, here, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "student.safetensors", "hr", "--json", "hr"], "got hr: a folder"),
        (["upscale", "student.safetensors", "hr", "--output", "c.yaml"], "got c.yaml: a file"),
        (["train", "c.yaml", "output=c.yaml"], "got c.yaml: a file"),
        (["demo", "--output", "hr"], "demo: expected an empty or new folder, got hr"),
    ],
)
def test_what_cannot_be_written_is_named_first(here, capsys, arguments, words):
    assert words in refused(capsys, here, *arguments)


def test_settings_are_read_in_utf_8_wherever(here):
    """Also where the locale and the streams are of ASCII."""
    (here / "c.yaml").write_bytes(f"# größe\n{TINY}heads: {{temperature: ä}}".encode())
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = process("config", "c.yaml", **locale)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert r"heads.temperature: expected valid number, got '\xe4'" in done.stderr
    (here / "c.yaml").write_bytes(f"{TINY}# größe\n".encode())
    assert process("config", "c.yaml", **locale).returncode == 0
    done = process("config", "output=größe", PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and 'output: "gr' in done.stdout


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"clsd {clsd_fast.__version__}\n"


def test_help_has_every_setting_with_default_and_meaning(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", "--help"])
    assert stop.value.code == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if "=" in line]
    shown = {first.split("=")[0]: first for first, _ in lines if first[0] != "("}
    for key, value, meaning in Config().settings():
        assert meaning, key
        if value is not None:
            assert shown[key].startswith(f"{key}=")
    assert "train.learning_rate=0.0002 " in " ".join(" ".join(line) for line in lines)


def test_config_prints_yaml_that_reads_back(here, capsys):
    main(["config"])
    out = capsys.readouterr().out
    (here / "printed.yaml").write_text(out)
    assert load_config(here / "printed.yaml") == Config()
    assert all("  # " in line for line in out.splitlines())
    main(["config", "c.yaml", "scale=3", "data.train=hr"])
    (here / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(here / "printed.yaml") == load_config(here / "c.yaml", ["scale=3"])


@pytest.mark.parametrize("text", ["#", " a", "a: b", "'", '"', "null", "é", "[x]", "line\nline"])
def test_texts_of_settings_are_written_as_they_are(here, text):
    (here / "a" / text).mkdir(parents=True)
    config = Config.model_validate({"output": text, "data": {"train": [f"a/{text}"]}})
    (here / "printed.yaml").write_text(config.to_yaml())
    assert load_config(here / "printed.yaml") == config


UNUSED_BY_INFO = {"PIL", "rich", "tensorboard", "matplotlib", "pytorch_msssim", "pydantic"}


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        ("config", {"torch", "numpy", "PIL", "rich", "tensorboard"}),
        ("info", UNUSED_BY_INFO),
        ("info student.safetensors", UNUSED_BY_INFO),
    ],
)
def test_a_command_imports_what_it_uses(here, command, unused):
    program = f"import sys; from clsd_train.cli import main; main({command.split()!r}); "
    program += f"print(sorted({unused!r} & set(sys.modules)), file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_a_reader_that_has_enough(here):
    read, write = os.pipe()
    os.close(read)
    done = process("config", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_stream_that_is_full(here):
    with open("/dev/full", "w") as full:
        done = process("config", stdout=full)
    assert (done.returncode, done.stderr) == (2, "clsd: No space left on device\n")


def test_a_name_that_no_terminal_shows(here, capsys):
    line = refused(capsys, here, "info", os.fsdecode(b"\xff\x1bm\n.pt"))
    assert line.endswith(r"got \udcff\x1bm\n.pt: no such file")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "expected enough memory for these sizes, got too little"),
        (RuntimeError("can't allocate memory: you tried to allocate 9 bytes\nat x"),
         "got can't allocate memory: you tried to allocate 9 bytes"),
        (RuntimeError("conv3x3: CLSD_FAST_ISA: expected one of avx2, portable, got 'mmx'"),
         "conv3x3: CLSD_FAST_ISA: expected one of avx2, portable, got 'mmx'"),
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_one_line(monkeypatch, capsys, tmp_path, error, line):
    def fail(arguments):
        raise error

    monkeypatch.setitem(cli.COMMANDS, "info", fail)
    assert refused(capsys, tmp_path, "info").endswith(line)


def test_an_error_of_ours_keeps_its_traceback(monkeypatch):
    def fail(arguments):
        raise RuntimeError("an index is off by one")

    monkeypatch.setitem(cli.COMMANDS, "info", fail)
    with pytest.raises(RuntimeError, match="off by one"):
        main(["info"])


UPSCALE = ("upscale", "student.safetensors", "hr", "--output", "sr")


@pytest.mark.thorough
def test_empty_variables_of_the_environment_are_not_set(here):
    names = ("CLSD_FAST_BACKEND", "CLSD_FAST_CONV", "CLSD_FAST_ISA")
    done = process(*UPSCALE, **dict.fromkeys(names, ""))
    assert done.returncode == 0, done.stderr
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    done = process("train", "c.yaml", **dict.fromkeys(names, ""))
    assert done.returncode == 0, done.stderr


def check_wrong_variable(name, value):
    done = process(*UPSCALE, **{name: value})
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"{name}: expected one of" in done.stderr


WRONG = ["abacus", "\udcff", "é\n"]


@pytest.mark.thorough
@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("name", ["CLSD_FAST_BACKEND", "CLSD_FAST_CONV"])
def test_variables_that_are_read_at_import(here, name, value):
    check_wrong_variable(name, value)


@pytest.mark.parametrize("value", WRONG)
def test_instruction_set_of_the_environment(here, native, value):
    check_wrong_variable("CLSD_FAST_ISA", value)
