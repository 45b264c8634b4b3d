"""What `accelerate` leaves alone, and the reasons that its report has."""

import pytest
import torch
import torch.nn.functional as F
from support.accelerated import images, operators, reasons
from torch import nn
from torch.nn.utils import parametrizations, prune
from zoo.blocks import CRC, ResBlock, conv

import clsd_fast
from clsd_fast import accelerate
from clsd_fast._accelerate import classes


def with_batch_norm(block):
    block.body.insert(1, nn.BatchNorm2d(16))


def with_a_parameter(block):
    block.gain = nn.Parameter(torch.ones(1))


def with_a_hooked_activation(block):
    hooked(block.body[1])


def with_another_forward(block):
    block.forward = lambda x: x


class Subtracting(CRC):
    def forward(self, x):
        return x - self.res(x) * x


class Writing(CRC):
    def forward(self, x):
        x += self.res(x)
        return x


class OnlyInEvaluation(CRC):
    def forward(self, x):
        return x + self.res(x) * (0.5 if self.training else 1)


class Growing(CRC):
    def forward(self, x):
        return torch.cat([x, self.res(x)], 1)


class WithOtherActivations(CRC):
    """A leaky one between, and a function that is not after the sum."""

    def __init__(self):
        super().__init__()
        self.res[1] = nn.LeakyReLU(0.2)

    def forward(self, x):
        return F.relu(x - -self.res(x))


class Final(CRC):
    def __init_subclass__(cls):
        raise TypeError("no subclasses, please")


class WithAnArgument(CRC):
    def forward(self, x, condition):
        return x + condition + self.res(x)


def changed(change):
    block = ResBlock()
    change(block)
    return block


NO_FORMULA = "it computes neither x + s f nor a(x + s f)"


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: changed(with_batch_norm), "BatchNorm2d among its layers"),
        (lambda: ResBlock(activation=nn.Tanh()), "Tanh among its layers"),
        (lambda: changed(with_a_hooked_activation), "hooked among its layers"),
        (WithOtherActivations, NO_FORMULA),
        (lambda: ResBlock(activation=nn.GELU()), "GELU among its layers"),
        (
            lambda: changed(with_a_parameter),
            "parameters or buffers beside those of its convolutions",
        ),
        (lambda: changed(with_another_forward), "its forward was replaced"),
        (Subtracting, NO_FORMULA),
        (Writing, NO_FORMULA),
        (OnlyInEvaluation, NO_FORMULA),
        (Growing, NO_FORMULA),
        (Final, "its class takes no subclasses"),
        (WithAnArgument, NO_FORMULA),
    ],
)
def test_refused_blocks(make, reason):
    """Their convolutions are replaced."""
    block = make()
    accelerate(block)
    assert not classes.is_accelerated(block)
    assert reasons(block)[""] == reason
    assert operators(block) == ["conv3x3", "conv3x3"]


def hooked(module, register="register_forward_hook"):
    getattr(module, register)(lambda *_: None)
    return module


def with_own_forward(module):
    module.forward = module.forward
    return module


class Scaled(nn.Conv2d):
    def forward(self, input):
        return 2 * super().forward(input)


MADE_BEFORE = "its weight is made before each call (weight_norm, spectral_norm, pruning)"
OTHER_CONVOLUTIONS = [
    ("kernel (5, 5)", lambda: nn.Conv2d(16, 16, 5, padding=2)),
    ("kernel (1, 1)", lambda: nn.Conv2d(16, 16, 1)),
    ("kernel (3, 1)", lambda: nn.Conv2d(16, 16, (3, 1), padding=1)),
    ("stride (2, 2)", lambda: conv(stride=2)),
    ("dilation (2, 2)", lambda: conv(dilation=2, padding=2)),
    ("16 groups", lambda: conv(groups=16)),
    ("2 groups", lambda: conv(groups=2)),
    ("padding (0, 0)", lambda: conv(padding=0)),
    ("padding (1, 0)", lambda: conv(padding=(1, 0))),
    ("padding (2, 2)", lambda: conv(padding=2)),
    ("padding valid", lambda: conv(padding="valid")),
    ("padding_mode reflect", lambda: conv(padding_mode="reflect")),
    ("padding_mode replicate", lambda: conv(padding_mode="replicate")),
    ("padding_mode circular", lambda: conv(padding_mode="circular")),
    ("hooked", lambda: hooked(conv())),
    ("hooked", lambda: hooked(conv(), "register_forward_pre_hook")),
    ("hooked", lambda: hooked(conv(), "register_full_backward_hook")),
    ("its forward was replaced", lambda: with_own_forward(conv())),
    ("its class has a forward of its own", lambda: Scaled(16, 16, 3, padding=1)),
    ("parametrised", lambda: parametrizations.weight_norm(conv())),
    ("parametrised", lambda: parametrizations.spectral_norm(conv())),
    (MADE_BEFORE, lambda: nn.utils.weight_norm(conv())),
    (MADE_BEFORE, lambda: nn.utils.spectral_norm(conv())),
    (MADE_BEFORE, lambda: prune.l1_unstructured(conv(), "weight", 0.5)),
    ("8 to 16 channels: PyTorch is faster", lambda: conv(8, 16)),
    ("12 to 12 channels: PyTorch is faster", lambda: conv(12, 12)),
    ("16 to 15 channels: PyTorch is faster", lambda: conv(16, 15)),
    ("3 to 4 channels: PyTorch is faster", lambda: conv(3, 4)),
    ("runs on clsd_fast.conv3x3 already", lambda: clsd_fast.nn.Conv3x3(16, 16)),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm", "ignore:.*spectral_norm")
@pytest.mark.parametrize("reason, make", OTHER_CONVOLUTIONS)
def test_refused_convolutions(reason, make):
    """A model of them alone is what it was, and the report says so."""
    model = nn.Sequential(make(), nn.ReLU())
    before = [type(module) for module in model.modules()]
    assert accelerate(model) is model
    assert [type(module) for module in model.modules()] == before
    assert reasons(model)["0"] == reason
    assert str(accelerate.report(model)).startswith("nothing replaced: the model is as it was\n")


@pytest.mark.parametrize("activation", [nn.GELU(), nn.SiLU(), nn.Mish()])
def test_other_activations_are_left_alone(activation):
    model = accelerate(nn.Sequential(conv(), activation))
    assert reasons(model) == {"1": "no kernel for this activation"}
    assert operators(model) == ["conv3x3"]


def test_nothing_to_replace():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    report = accelerate.report(accelerate(model))
    assert report.rows == ()
    assert str(report) == "nothing replaced: the model is as it was"
    assert {type(module) for module in model.modules()} == {nn.Sequential, nn.Linear, nn.ReLU}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_torchscript_among_the_modules_is_left_alone(native):
    scripted = torch.jit.script(nn.Sequential(conv(), nn.ReLU()))
    model = nn.Sequential(scripted, conv())
    x = images().float()
    expected = model(x)
    assert operators(accelerate(model)) == ["conv3x3"]
    assert model[0] is scripted
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_our_own_modules_are_left_alone():
    student = clsd_fast.EDSR(2, 2, 16)
    before = [type(module) for module in student.modules()]
    assert [type(module) for module in accelerate(student).modules()] == before
    assert "runs on clsd_fast.conv3x3 already" in str(accelerate.report(student))
