"""Whatever a file, a folder, an argument or the environment holds: one line and exit code 2."""

import contextlib
import io
import os
import string

import pytest
import torch
import yaml
from hypothesis import assume, example, given
from hypothesis import strategies as st
from safetensors.torch import save
from support.trainer_util import write_images

from clsd_fast import EDSR
from clsd_fast.backend._choices import of_environment
from clsd_train.checkpoint import save_student
from clsd_train.cli import COMMANDS, main
from clsd_train.config import Config

KEYS = [key for key, _, _ in Config().settings()]
SPECIAL = [
    "",
    ".",
    "~",
    "~nobody/x",
    "[",
    "*",
    "a/*",
    "null",
    "--",
    "-1",
    "=",
    "1e999",
    "\0",
    "é\n",
]
SPECIAL += [
    "[]",
    "{}",
    "&a [*a]",
    "!!float x",
    "!!timestamp x",
    "9" * 5000,
    "nan",
    "-0",
    "\udcff",
    "\ud800",
]
#: No file has such a name, and no text of it is a help option.
words = st.one_of(st.text(max_size=8), st.sampled_from(SPECIAL), st.from_regex(r"--[a-z-]{1,9}"))


def outcome(*arguments):
    """Exit code and lines on stderr of a command."""
    err, code = io.StringIO(), 0
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main([os.fspath(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    return code, err.getvalue().splitlines()


def assert_refused(*arguments):
    code, lines = outcome(*arguments)
    assert code == 2
    assert len(lines) == 1 and lines[0].startswith("clsd: "), lines
    assert lines[0].isprintable()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """An empty folder, in which the commands run."""
    folder = tmp_path_factory.mktemp("here")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "student.safetensors"
    save_student(EDSR(2, 1, 4), path)
    return path


@pytest.fixture(scope="module")
def hr(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "hr", a=(40, 40))


@given(command=words, rest=st.lists(words, max_size=3))
def test_command(here, command, rest):
    assume(command not in COMMANDS and not {"-h", "--help", "--version"} & {command, *rest})
    assert_refused(command, *rest)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_arguments(here, command):
    @given(arguments=st.lists(words, min_size=1, max_size=4))
    def check(arguments):
        assume(not {"-h", "--help", "--"} & set(arguments))
        assert_refused(command, *arguments, "--no-such-option")
        if command not in ("demo", "config", "info"):
            assert_refused(command, *arguments)

    check()


overrides = st.builds(
    lambda key, value: f"{key}={value}",
    st.one_of(st.sampled_from(KEYS), st.text(string.ascii_letters + ".", max_size=9)),
    st.one_of(st.text(max_size=9), st.sampled_from(SPECIAL), st.integers().map(str)),
)


@given(settings=st.lists(overrides, min_size=1, max_size=3))
def test_settings(here, settings):
    # Without a folder of images, nothing is trained on any of them.
    folders = [s for s in settings if s.startswith("data.train")]
    assert_refused("train", *(set(settings) - set(folders)))
    code, lines = outcome("config", *settings)
    assert (code, len(lines)) in ((0, 0), (2, 1)), lines


scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=5)), inner, max_size=3),
    ),
    max_leaves=6,
)


encoded = st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))


@given(content=st.one_of(st.binary(max_size=60), encoded))
def test_yaml_file(here, content):
    (here / "c.yaml").write_bytes(content)
    assert_refused("train", "c.yaml")


@given(content=values)
def test_yaml_values(here, content):
    (here / "c.yaml").write_text(yaml.dump(content), encoding="utf-8")
    assert_refused("train", "c.yaml")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoint_of_bytes(here, suffix):
    @given(content=st.binary(max_size=200))
    def check(content):
        (here / f"c{suffix}").write_bytes(content)
        assert_refused("info", f"c{suffix}")

    check()


tensors = st.builds(
    lambda shape, dtype: torch.ones(shape).to(dtype),
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64]),
)
NAMES = [*EDSR(2, 1, 4).state_dict(), "params", "model", "ema", "student.", "tail.0.2.weight"]
objects = st.recursive(
    st.one_of(scalars, tensors),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.dictionaries(st.one_of(st.sampled_from(NAMES), st.integers()), inner, max_size=5),
    ),
    max_leaves=8,
)


@given(content=objects)
def test_checkpoint_of_objects(here, content):
    torch.save(content, here / "c.pt")
    assert_refused("info", "c.pt")


@given(changes=st.dictionaries(st.sampled_from(NAMES), tensors, min_size=1, max_size=3))
@example(changes={"sub_mean.bias": torch.ones(2, 1, dtype=torch.complex64)})
def test_checkpoint_with_other_tensors(here, changes):
    state = EDSR(2, 1, 4).state_dict()
    fits = {name: value for name, value in changes.items()
            if name in state and value.shape == state[name].shape}  # fmt: skip
    assume(len(fits) < len(changes))
    torch.save({**state, **changes}, here / "c.pt")
    assert_refused("info", "c.pt")


@given(place=st.integers(0, 10**6), length=st.integers(0, 40), content=st.binary(max_size=40))
def test_damaged_checkpoint(here, student, place, length, content):
    for number, intact in enumerate((student.read_bytes(), _torch_file())):
        start = place % len(intact)
        path = here / f"damaged{number}{('.safetensors', '.pt')[number]}"
        path.write_bytes(intact[:start] + content + intact[start + length :])
        code, lines = outcome("info", path)
        assert code in (0, 2) and len(lines) <= 1, lines


def _torch_file():
    buffer = io.BytesIO()
    torch.save(EDSR(2, 1, 4).state_dict(), buffer)
    return buffer.getvalue()


@given(
    stated=st.dictionaries(
        st.sampled_from(["scale", "num_blocks", "channels", "res_scale", "value_range"]),
        st.one_of(st.text(max_size=9), st.sampled_from(["-1", "0", "1e999", "NaN", '"2"', "[2]"])),
        min_size=1,
    )
)
def test_metadata(here, stated):
    assume(not set(stated.values()) & {"1", "2", "4"})
    metadata = {
        "clsd_fast": "0",
        **{k: v.encode("utf-8", "replace").decode() for k, v in stated.items()},
    }
    (here / "c.safetensors").write_bytes(save(EDSR(2, 1, 4).state_dict(), metadata))
    code, lines = outcome("info", "c.safetensors")
    positive = all(value.isdigit() and float(value) for value in stated.values())
    assert (code, len(lines)) == (2, 1) or positive, lines


@pytest.mark.parametrize("command", ["eval", "upscale"])
def test_images(here, student, command):
    folder = here / "images"
    folder.mkdir(exist_ok=True)
    output = ("--output", here / "sr") if command == "upscale" else ()

    @given(
        content=st.binary(max_size=80),
        magic=st.sampled_from(
            [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"RIFF"]
        ),
    )
    def check(content, magic):
        (folder / "a.png").write_bytes(magic + content)
        assert_refused(command, student, folder, *output)
        assert not (here / "sr").exists()

    check()


@pytest.mark.parametrize("name", ["state.pt", "config.yaml"])
def test_folder_of_a_run(here, hr, name):
    settings = ("model.num_blocks=1", "model.channels=4", "method=baseline", "data.patch_size=8")
    settings += (f"data.train={hr}", "data.cache=cache", "train.iterations=1", "output=run")

    @given(content=st.binary(min_size=1, max_size=40))
    def check(content):
        (here / "run").mkdir(exist_ok=True)
        (here / "run" / name).write_bytes(content)
        assert_refused("train", *settings, "--resume")

    check()


variables = st.one_of(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9),
    st.sampled_from(["", "-1", "0", "1", "2", "9" * 5000, "1.0", "\udcff", "²"]),
)


@given(name=st.sampled_from(["XDG_CACHE_HOME", "HOME", "COLUMNS", "TERM", "LANG"]), value=variables)
def test_environment(here, name, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        assert_refused("eval", "~/nowhere.pt", "~/nowhere")


@given(
    values=st.dictionaries(
        st.sampled_from(["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR"]), variables, min_size=1
    ),
    port=st.sampled_from(["", "x", "-1", "65536"]),  # at any other, ranks might meet
)
def test_ranks_of_the_environment(here, hr, values, port):
    assume(values.get("RANK", "") not in ("", "0") or values.get("WORLD_SIZE", "") not in ("", "1"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (values | {"MASTER_PORT": port}).items():
            patch.setenv(name, value)
        assert_refused("train", f"data.train={hr}", "output=ranks")
    assert not (here / "ranks").exists()


@given(value=variables, choices=st.lists(st.text(string.ascii_lowercase, min_size=1), min_size=1))
def test_choices_of_the_environment(value, choices):
    """Those that are read when the package is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLSD_FAST_CHOICE", value)
        if value in ("", *choices):
            assert of_environment("CLSD_FAST_CHOICE", *choices) == (value or choices[0])
        else:
            with pytest.raises(ValueError, match="^CLSD_FAST_CHOICE: expected one of .*, got "):
                of_environment("CLSD_FAST_CHOICE", *choices)
