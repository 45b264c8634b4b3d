"""Files of weights as training codes write them: containers, wrappers and layouts."""

import hashlib
import warnings

import pytest
import torch
from safetensors.torch import save_file
from support.plain_edsr import BasicSREDSR, PlainEDSR
from support.trainer_util import refused, tiny_config
from torch import nn
from zoo.residual import MSRResNet

from clsd_fast import CLSD, EDSR
from clsd_train import official
from clsd_train.architecture import MEAN_SHIFT
from clsd_train.checkpoint import load_student
from clsd_train.errors import Notice, UserError
from clsd_train.loop import Run

NAMES = ["params_ema", "params", "state_dict", "model", "net", "network", "weights", "ema"]
NAMES += ["generator", "model_state_dict"]
CONTAINERS = [(), *((name,) for name in NAMES)]
CONTAINERS += [("model", "state_dict"), ("state_dict", "net", "params_ema")]
PREFIXES = ["", "module.", "model.", "net_g.", "_orig_mod.", "generator.", "module._orig_mod."]
PREFIXES += ["_orig_mod.module.", "model.net_g.module."]
READING = (0.5, 255.0, True)


def plain(scale):
    """EDSR-PyTorch's, in 0..255."""
    network = PlainEDSR(scale, 2, 4, 0.5)
    means = EDSR(scale, 1, 4).state_dict()
    network.load_state_dict({k: means[k] for k in MEAN_SHIFT}, strict=False)
    return network, network


def torchsr(scale):
    """torchSR's: the same names, in 0..1."""
    network, _ = plain(scale)
    return network, lambda lr: network(255 * (lr / 255)) / 255 * 255


def basicsr(scale):
    network = BasicSREDSR(scale, 2, 4, 0.5)
    return network, lambda lr: 255 * network(lr / 255)


LAYOUTS = [plain, torchsr, basicsr]


def wrapped(state, containers=(), prefix=""):
    content = {prefix + name: value for name, value in state.items()}
    for name in reversed(containers):
        content = {"epoch": 3, name: content, "optimizer": {"state": {}, "param_groups": [{}]}}
    return content


def check(path, layout, scale, containers=(), prefix=""):
    """The student makes the images that the layout's own network makes."""
    network, images = layout(scale)
    torch.save(wrapped(network.state_dict(), containers, prefix), path)
    student, lr = load_student(path, *READING), 255 * torch.rand(1, 3, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(student(lr), images(lr), rtol=0, atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_container(tmp_path, prefix, layout):
    torch.manual_seed(0)
    for containers in CONTAINERS:
        check(tmp_path / "n.pt", layout, 2, containers, prefix)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_every_scale(tmp_path, scale, layout):
    torch.manual_seed(0)
    check(tmp_path / "n.pt", layout, scale)


def test_every_layout_has_weights_of_its_own():
    """So that no layout passes by another's names."""
    names = [frozenset(layout(2)[0].state_dict()) for layout in LAYOUTS]
    assert names[0] == names[1] != names[2]


def test_averages_come_first(tmp_path):
    """Whatever the order in the file, and where one is empty, what is not."""
    states = [EDSR(2, 1, 4).state_dict() for _ in range(2)]
    for average, live in (("params_ema", "params"), ("ema", "model"), ("ema", "net")):
        torch.save({live: states[0], average: states[1]}, tmp_path / "n.pt")
        assert_has(load_student(tmp_path / "n.pt", *READING), states[1])
        for nothing in (None, {}, {"decay": 0.999, "updates": 7}):
            torch.save({average: nothing, live: states[0]}, tmp_path / "n.pt")
            assert_has(load_student(tmp_path / "n.pt", *READING), states[0])


def assert_has(student, state):
    assert student.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in student.state_dict().items())


def test_what_is_beside_the_network_is_left_out(tmp_path):
    student = EDSR(2, 1, 4)
    averaged = torch.optim.swa_utils.AveragedModel(student)
    beside = {"discriminator.0.weight": torch.zeros(1), "n_averaged": torch.tensor(3)}
    generator = wrapped(student.state_dict(), prefix="generator.")
    for state in (averaged.state_dict(), {**beside, **generator}):
        torch.save(state, tmp_path / "n.pt")
        assert_has(load_student(tmp_path / "n.pt", *READING), student.state_dict())


def test_two_networks_are_refused(tmp_path):
    states = [wrapped(EDSR(2, 1, 4).state_dict(), prefix=p) for p in ("net_g.", "generator.")]
    torch.save(states[0] | states[1], tmp_path / "n.pt")
    with pytest.raises(UserError, match=r"expected one network in .*, got \S+\.weight twice"):
        load_student(tmp_path / "n.pt")


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
@pytest.mark.parametrize("contrast", ["info_nce", "pos_only"])
def test_the_student_of_a_clsd(tmp_path, contrast, prefix):
    student = EDSR(2, 2, 4, 0.5)
    model = CLSD(student, taps=(1, 2), head_blocks=1, contrast=contrast)
    torch.save(wrapped(model.state_dict(), ("state_dict",), prefix), tmp_path / "n.ckpt")
    assert_has(load_student(tmp_path / "n.ckpt", *READING), student.state_dict())


@pytest.mark.parametrize("options", [{}, {"ema": 0.5}])
@pytest.mark.parametrize("method", ["clsd", "baseline"])
def test_the_state_of_a_run(tmp_path, method, options):
    """It has the weights that the student's own file has, and says how they are read."""
    config = tiny_config(tmp_path, method=method, iterations=2, **options)
    model = config.model.model_copy(update={"res_scale": 0.25})
    Run(config.model_copy(update={"model": model})).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        student = load_student(config.output / "state.pt")
    expected = load_student(config.output / "student.safetensors")
    assert_has(student, expected.state_dict())
    assert (student.res_scale, student.value_range) == (0.25, 255.0)


def test_a_state_that_does_not_say_its_settings(tmp_path):
    config = tiny_config(tmp_path, iterations=1)
    Run(config).train()
    state = torch.load(config.output / "state.pt")
    for settings in (None, {}, {"model": {"res_scale": -1}}, {"model": {"res_scale": [0.5]}}):
        torch.save({**state, "config": settings}, tmp_path / "n.pt")
        with pytest.warns(Notice, match="does not say how its weights are read"):
            load_student(tmp_path / "n.pt")


def test_wrappers_in_safetensors(tmp_path):
    state = EDSR(2, 1, 4).state_dict()
    save_file(wrapped(state, prefix="module."), tmp_path / "n.safetensors")
    assert_has(load_student(tmp_path / "n.safetensors", *READING), state)


def with_stages(scale):
    """BasicSR's EDSR of a higher scale."""
    state = BasicSREDSR(4, 1, 4).state_dict()
    for stage in range({8: 3, 16: 4}[scale]):
        for end in ("weight", "bias"):
            state[f"upsample.{2 * stage}.{end}"] = state[f"upsample.0.{end}"]
    return state


def with_channels(channels):
    student = EDSR(2, 1, 4)
    student.head[0] = nn.Conv2d(channels, 4, 3)
    student.tail[1] = nn.Conv2d(4, channels, 3)
    return {k: v for k, v in student.state_dict().items() if "mean" not in k}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        *(
            (MSRResNet(scale).state_dict(), "got an MSRResNet (which has LeakyReLU and a bilinear")
            for scale in (2, 4)
        ),
        (with_stages(8), "got one of x8 or more (x2, x3 and x4 are read)"),
        (with_stages(16), "got one of x8 or more (x2, x3 and x4 are read)"),
        (with_channels(1), "got one for images of 1 channel (3 are read)"),
        (with_channels(4), "got one for images of 4 channels (3 are read)"),
    ],
)
def test_what_no_student_can_be_is_said(tmp_path, capsys, state, words):
    torch.save(state, tmp_path / "n.pth")
    line = refused(capsys, tmp_path, "info", tmp_path / "n.pth")
    assert words in line


def test_official_files_say_how_they_are_read(tmp_path, monkeypatch):
    """By their content: another file of the same weights does not."""
    path = tmp_path / "n.pt"
    torch.save(EDSR(3, 1, 4, value_range=255.0).state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(official.EDSR_BASELINE, 3, digest)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        student = load_student(path)
        assert (student.res_scale, student.value_range) == (1.0, 255.0)
        assert load_student(path, res_scale=0.1).res_scale == 0.1
    torch.save({"state_dict": student.state_dict()}, path)
    with pytest.warns(Notice, match="does not say how its weights are read"):
        load_student(path)


def test_official_files_are_those_that_are_published():
    """Whose names end in the first digits of their hashes."""
    names = {2: "1bc95232", 3: "abf2a44e", 4: "6b446fab"}
    assert {scale: digest[:8] for scale, digest in official.EDSR_BASELINE.items()} == names
    assert all(len(bytes.fromhex(digest)) == 32 for digest in official.EDSR_BASELINE.values())
