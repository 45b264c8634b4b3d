"""EDSR in spandrel's registry: in spandrel itself where it is installed, and in what it calls."""

import copy
import importlib
import importlib.util
import sys
import types
import warnings
from typing import Generic, NamedTuple, TypeVar

import pytest
import torch
from support.plain_edsr import BasicSREDSR
from torch import nn
from zoo.attention import RCAN
from zoo.residual import MSRResNet

from clsd_fast import CLSD, EDSR
from clsd_train.checkpoint import save_student
from clsd_train.errors import Notice, UserError

T = TypeVar("T")


class Architecture(Generic[T]):
    def __init__(self, *, id, detect, name=None):
        self.id, self.name, self.detect = id, name, detect


class ArchSupport(NamedTuple):
    architecture: Architecture

    @classmethod
    def from_architecture(cls, architecture):
        return cls(architecture)


class ArchRegistry:
    def __init__(self):
        self.supports = []

    def add(self, *supports):
        self.supports += supports

    def load(self, state_dict):
        for support in self.supports:
            if support.architecture.detect(state_dict):
                return support.architecture.load(state_dict)
        raise LookupError


class ImageModelDescriptor(Generic[T]):
    def __init__(self, model, state_dict, architecture, *, call_fn, **facts):
        model.load_state_dict(state_dict)
        self.model, self.architecture, self.call_fn = model, architecture, call_fn
        vars(self).update(facts)

    @torch.inference_mode()
    def __call__(self, image):
        return self.call_fn(self.model.eval(), image).clamp_(0, 1)


def stand_in():
    """What this package calls of spandrel, and no more."""
    module = types.ModuleType("spandrel")
    for part in (Architecture, ArchSupport, ArchRegistry, ImageModelDescriptor):
        setattr(module, part.__name__, part)
    module.MAIN_REGISTRY = ArchRegistry()
    return module


@pytest.fixture(params=["stand-in", "installed"])
def spandrel(request, monkeypatch):
    """spandrel with EDSR in its registry, and the class that is there."""
    module = stand_in() if request.param == "stand-in" else installed()
    monkeypatch.setitem(sys.modules, "spandrel", module)
    for name, value in vars(module.MAIN_REGISTRY).items():  # which are put back after the test
        monkeypatch.setattr(module.MAIN_REGISTRY, name, copy.copy(value))
    spec = importlib.util.find_spec("clsd_train.spandrel")
    ours = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ours)
    monkeypatch.setattr(module, "EDSRArch", ours.EDSRArch, raising=False)
    return module


def installed():
    try:
        return importlib.import_module("spandrel")
    except Exception as error:  # a torchvision of another torch raises what it likes
        pytest.skip(f"needs spandrel: {error}")


def assert_makes_images_of(model, network, white):
    """The network takes images in 0..white."""
    lr = torch.rand(1, 3, 7, 5)
    with torch.no_grad():
        expected = (network(white * lr) / white).clamp(0, 1)
    torch.testing.assert_close(model(lr), expected, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore::clsd_train.errors.Notice")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_edsr(spandrel, scale):
    torch.manual_seed(0)
    student = EDSR(scale, 3, 8)
    model = spandrel.MAIN_REGISTRY.load(student.state_dict())
    assert_makes_images_of(model, student, 255)
    assert (model.scale, model.input_channels, model.output_channels) == (scale, 3, 3)
    assert (model.tags, model.purpose, model.architecture.name) == (["8nf", "3nb"], "SR", "EDSR")


@pytest.mark.filterwarnings("ignore::clsd_train.errors.Notice")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_one_of_basicsr(spandrel, scale):
    torch.manual_seed(0)
    network = BasicSREDSR(scale, 2, 8)
    assert_makes_images_of(spandrel.MAIN_REGISTRY.load(network.state_dict()), network, 1)


@pytest.mark.filterwarnings("ignore::clsd_train.errors.Notice")
def test_the_student_of_a_clsd(spandrel):
    student = EDSR(2, 2, 8)
    state = CLSD(student, taps=(1,), head_blocks=1).state_dict()
    assert_makes_images_of(spandrel.MAIN_REGISTRY.load({"model": state}), student, 255)


def test_how_it_is_read_is_chosen_or_given(spandrel):
    student = EDSR(2, 2, 8, 0.1, value_range=1.0)
    student.sub_mean = student.add_mean = nn.Identity()
    registry = spandrel.ArchRegistry()
    arch = spandrel.EDSRArch(res_scale=0.1, value_range=1.0, mean_shift=False)
    registry.add(spandrel.ArchSupport.from_architecture(arch))
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        assert_makes_images_of(registry.load(student.state_dict()), student, 1)
    with pytest.raises(UserError, match="in the state_dict, got none of sub_mean.bias"):
        spandrel.MAIN_REGISTRY.load(student.state_dict())
    with pytest.warns(Notice, match="the state_dict does not say how its weights are read"):
        spandrel.MAIN_REGISTRY.load(EDSR(2, 1, 4).state_dict())


@pytest.mark.parametrize("network", [MSRResNet, RCAN])
def test_other_networks_are_not_taken_for_one(spandrel, network):
    assert not spandrel.EDSRArch().detect(network().state_dict())
    assert not spandrel.EDSRArch().detect({"params": 3})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves(spandrel, dtype):
    """Within two of 255 levels."""
    torch.manual_seed(0)
    student = EDSR(2, 2, 8)
    arch = spandrel.EDSRArch(1.0, 255.0, True)
    lr, model = torch.rand(1, 3, 7, 5), arch.load(student.state_dict())
    expected = model(lr)
    assert model.supports_half and model.supports_bfloat16
    model.model.to(dtype)
    assert (model(lr.to(dtype)) - expected).abs().max() < 2 / 255


@pytest.mark.filterwarnings("ignore::clsd_train.errors.Notice")
def test_its_loader(spandrel, tmp_path):
    if not hasattr(spandrel, "ModelLoader"):
        pytest.skip("needs spandrel")
    student = EDSR(2, 2, 8)
    save_student(student, tmp_path / "a.safetensors")
    torch.save({"params_ema": BasicSREDSR(3, 2, 8).state_dict()}, tmp_path / "b.pth")
    model = spandrel.ModelLoader().load_from_file(tmp_path / "a.safetensors")
    assert_makes_images_of(model, student, 255)
    assert spandrel.ModelLoader().load_from_file(tmp_path / "b.pth").scale == 3
