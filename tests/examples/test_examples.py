"""The examples run, each inside the code that it is written for."""

import copy
import runpy
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from support.util import rand

from clsd_fast import EDSR, accelerate
from clsd_fast.losses import patch_nce

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = ("basicsr_losses", "lightning_module", "plain_loop")


class Registry:
    """What BasicSR's does: classes by their names, each once."""

    def __init__(self):
        self.classes = {}

    def register(self, cls):
        assert cls.__name__ not in self.classes
        self.classes[cls.__name__] = cls

    def build(self, options):
        options = copy.deepcopy(options)
        return self.classes[options.pop("type")](**options)


def run(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_they_are_short_and_all_tested():
    lines = {path.stem: len(path.read_text().splitlines()) for path in EXAMPLES.glob("*.py")}
    assert tuple(sorted(lines)) == NAMES
    assert max(lines.values()) <= 40


def test_plain_loop(capsys):
    torch.manual_seed(0)
    example = run("plain_loop")
    network = example["Network"]()
    before = copy.deepcopy(network.state_dict())
    images = rand(4, 3, 16, 16).float()
    example["train"](network, [(images[..., ::2, ::2], images)] * 8)
    losses = [float(line) for line in capsys.readouterr().out.split()]
    assert len(losses) == 8 and losses[-1] < losses[0]
    assert all(not torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert any(row.operator for row in accelerate.report(network).rows)


@pytest.fixture
def registry(monkeypatch):
    """In the place of BasicSR's."""
    for name in ("basicsr", "basicsr.utils", "basicsr.utils.registry"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    losses = sys.modules["basicsr.utils.registry"].LOSS_REGISTRY = Registry()
    return losses


def test_basicsr_losses(registry):
    run("basicsr_losses")
    options = {"type": "PatchNCELoss", "num_patches": 16, "loss_weight": 0.1, "reduction": "mean"}
    maps, target = rand(2, 4, 4, 4), rand(2, 4, 4, 4, seed=1)
    expected = 0.1 * patch_nce(maps, target, num_patches=16)
    torch.testing.assert_close(registry.build(options)(maps, target), expected)
    options = {"loss_weight": 0.1, "reduction": "mean"}
    for name, inputs in (
        ("InfoNCELoss", (maps[0, 0], target[0, 0])),
        ("DistanceRatioLoss", (maps[0, 0], target[0, 0])),
        ("FeatureRatioLoss", (maps, target)),
    ):
        assert registry.build({"type": name, **options})(*inputs).shape == ()
    assert len(registry.classes) == 4


def test_lightning_module(tmp_path):
    lightning = pytest.importorskip("lightning")
    example = run("lightning_module")
    torch.manual_seed(0)
    module = example["SuperResolution"](num_blocks=2, channels=8, taps=(1,))
    before = copy.deepcopy(module.model.student.state_dict())
    hr = 255 * torch.rand(2, 2, 3, 16, 16)
    loader = torch.utils.data.DataLoader([(x[..., ::2, ::2], x) for x in hr], batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's about few workers and steps
        trainer = lightning.Trainer(
            max_steps=2,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, loader, loader)
    logged = trainer.logged_metrics
    assert {"rec", "ds", "cl", "total", "psnr"} <= logged.keys()
    assert all(value.isfinite() for value in logged.values())
    student = EDSR(2, 2, 8)
    student.load_state_dict(module.model.student.state_dict())
    changed = {k for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {name for name, p in student.named_parameters() if p.requires_grad}
