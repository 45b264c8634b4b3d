"""What CLSD refuses of a student, in one sentence each; the student is left as it was."""

import re

import pytest
import torch
from support.students import batch, checkpointed, hooks_of, make, network
from torch import nn
from zoo import ZOO

from clsd_fast import CLSD, EDSR


class Around(nn.Module):
    """A student that calls its middle in a way of its own."""

    def __init__(self, call, middle):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.middle, self.call = middle, call
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, x):
        return self.shuffle(self.tail(self.call(self.middle, self.head(x))))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


def once(middle, x):
    return middle(x)


def twice(middle, x):
    return middle(middle(x))


def never(middle, x):
    return x


def first(middle, x):
    return middle(x)[0]


def changed(middle, x):
    y = middle(x)
    y += 1
    return y


def around(call, middle=None, **options):
    options = {"taps": ("middle",), "deep": "tail", "scale": 2, **options}
    return CLSD(Around(call, middle or nn.Identity()), **options)


def step(model, hr=None):
    lr, target = (x.float() for x in batch())
    return model(lr, target if hr is None else hr)


def sequence(inputs, outputs, scale):
    convs = nn.Conv2d(inputs, 4, 3, padding=1), nn.Conv2d(4, outputs, 3, padding=1)
    student = nn.Sequential(*convs, nn.PixelShuffle(scale))
    return CLSD(student, ("0",), deep="1", scale=scale)


#: Options of RCAN.
OPTIONS = [
    (
        {"taps": ("body.0", "body.7")},
        "the path of a module of RCAN, got 'body.7', nearest is body.2",
    ),
    ({"deep": "tale"}, "the path of a module of RCAN, got 'tale', nearest is tail"),
    ({"shallow": ""}, "the path of a module of RCAN, got ''"),
    ({"deep": 3}, "the path of a module of RCAN, got 3"),
    ({"taps": "body.0"}, "a sequence of taps, got 'body.0'"),
    ({"taps": (1, "body.0")}, "taps all by number or all by path, got [1, 'body.0']"),
    ({"taps": ("body.0", "body.0")}, "distinct taps, got ['body.0', 'body.0']"),
    ({"taps": (1, 2)}, "student to be an EDSR for taps by number, got RCAN"),
    ({"taps": ("body.2",)}, "the output of body.2 unmodified, got it modified in place"),
    ({"deep": None}, "deep= for the contrast of taps by path, got none"),
    (
        {"shallow": None, "skip": "first"},
        "shallow= for skip 'first' of taps by path, got none",
    ),
    ({"scale": None}, "scale= of a student that is no EDSR, got none"),
    ({"scale": 0}, "scale >= 1 and value_range > 0, got 0 and 1.0"),
    ({"value_range": -1}, "scale >= 1 and value_range > 0, got 2 and -1"),
    (
        {"scale": 3},
        "the student's images of shape [1, 3, 144, 144] at scale 3, got [1, 3, 96, 96]",
    ),
    ({"channels": 0}, "channels >= 1, got 0"),
    ({"base": "bicubic"}, "base in None, bilinear, nearest, got 'bicubic'"),
    (
        {"head": lambda channels, scale: None},
        "head(channels, scale) to be an nn.Module, got NoneType",
    ),
]
#: What else makes no model.
STUDENTS = [
    (lambda: around(never), "the student to call middle once, got 0 calls"),
    (lambda: around(twice), "the student to call middle once, got 2 calls"),
    (lambda: around(first, Pair()), "the output of middle to be a tensor, got tuple"),
    (lambda: around(changed), "the output of middle unmodified, got it modified in place"),
    (
        lambda: around(once, nn.ReLU(inplace=True), taps=("head",), deep="middle"),
        "the input of middle unmodified, got it modified in place",
    ),
    (
        lambda: around(once, taps=("shuffle",)),
        "the output of shuffle of shape [1, 8, 48, 48], got [1, 3, 96, 96]",
    ),
    (
        lambda: around(once, taps=("middle",), deep="head"),
        "the output of middle of shape [1, 3, 48, 48], got [1, 8, 48, 48]",
    ),
    (
        lambda: around(lambda middle, x: middle(x[0])[None], taps=("middle",)),
        "the output of middle of shape [1, 8, 48, 48], got [8, 48, 48]",
    ),
    (
        lambda: CLSD(ZOO["VDSR"](), ("residual_layer.0",), deep="output", scale=2),
        "the input of output of shape [1, 16, 48, 48], got [1, 16, 96, 96]",
    ),
    (lambda: sequence(3, 192, 8), "scale in {2, 3, 4} without head=, got 8"),
    (lambda: CLSD(EDSR(2, 2, 8), (1,), deep="tail"), "no deep= for taps by number, got tail"),
    (
        lambda: CLSD(EDSR(2, 2, 8), (1,), base="nearest"),
        "no base= for taps by number, got nearest",
    ),
    (
        lambda: CLSD(EDSR(2, 2, 8), (1,), scale=3),
        "the EDSR's scale and value_range 2 and 255.0, got 3 and 1.0",
    ),
    (
        lambda: CLSD(EDSR(2, 2, 8), ("body.0",), deep="tail", value_range=2.0),
        "the EDSR's scale and value_range 2 and 255.0, got None and 2.0",
    ),
]
#: What is found out in a step; nothing was tried where the channels are given.
STEPS = [
    (
        lambda: step(make("RCAN", channels=8)),
        "the input of tail of shape [3, 8, 7, 6], got [3, 16, 7, 6]",
    ),
    (
        lambda: step(make("RCAN", channels=16, scale=3), torch.rand(3, 3, 21, 18)),
        "the student's images of shape [3, 3, 21, 18] at scale 3, got [3, 3, 14, 12]",
    ),
    (
        lambda: step(around(changed, channels=8)),
        "the output of middle unmodified, got it modified in place",
    ),
    (
        lambda: step(checkpointed(use_reentrant=True)),
        "the input of network.tail with its gradient, got it made under no_grad "
        "(checkpoints have it with use_reentrant=False)",
    ),
    (
        lambda: step(make("RCAN", head=lambda channels, scale: nn.Conv2d(channels, 3, 1))),
        "a head's images of shape [3, 3, 14, 12] at scale 2, got [3, 3, 7, 6]",
    ),
    (
        lambda: step(make("RCAN"), torch.rand(3, 3, 7, 6)),
        "hr of shape [3, 3, 14, 12], got [3, 3, 7, 6]",
    ),
    (
        lambda: make("RCAN")(torch.rand(3, 7, 6), torch.rand(3, 14, 12)),
        "images [B, 3, h, w], got [3, 7, 6]",
    ),
]


@pytest.mark.parametrize(
    "call, sentence",
    [
        *((lambda options=options: make("RCAN", **options), text) for options, text in OPTIONS),
        *STUDENTS,
        *STEPS,
    ],
    ids=lambda value: re.sub(r"\W+", "-", value) if isinstance(value, str) else "",
)
def test_errors(call, sentence):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value) == f"CLSD: expected {sentence}"


def test_a_student_that_does_not_run_on_the_image():
    sentence = (
        r"a student that runs on an image of shape \[1, 3, 48, 48\], or channels=, got Runtime"
    )
    with pytest.raises(ValueError, match=f"CLSD: expected {sentence}"):
        sequence(1, 12, 2)


@pytest.mark.parametrize("options", [options for options, _ in OPTIONS])
def test_a_refused_student_is_as_it_was(options):
    student = network("RCAN")
    student.body.eval()
    modes = [module.training for module in student.modules()]
    given = {"taps": ("body.0",), "deep": "tail", "shallow": "body", "scale": 2, **options}
    with pytest.raises((ValueError, TypeError)):
        CLSD(student, **given)
    assert hooks_of(student) == []
    assert [module.training for module in student.modules()] == modes


def test_what_is_tried():
    """One image, in eval() and without gradients; none where it is not needed."""
    calls = []

    def call(middle, x):
        calls.append((list(x.shape), x.requires_grad, middle.training))
        return middle(x)

    model = around(call)
    assert calls == [([1, 8, 48, 48], False, False)] and model.student.middle.training
    assert model.heads["middle"].conv.weight.shape[0] == 8
    around(call, channels=8)
    plain = around(call, ds_weight=0, contrast_weight=0)
    assert len(calls) == 1 and hooks_of(plain.student) == []
    assert set(step(plain).losses) == {"rec", "total"}


def test_no_deep_features_without_a_contrast():
    losses = step(around(once, deep=None, contrast_weight=0)).losses
    assert set(losses) == {"rec", "ds", "total"}


def test_an_edsr_by_paths():
    """Has its own scale and value range, and the same losses by either."""
    found = []
    for options in (
        {"taps": (1, 2)},
        {"taps": ("body.0", "body.1"), "deep": "tail", "shallow": "body"},
    ):
        torch.manual_seed(0)
        model = CLSD(EDSR(2, 3, 8), contrast="pos_only", head_blocks=1, **options).double()
        assert (model.scale, model.value_range) == (2, 255.0)
        for head in model.heads.values():  # its shift is what a head of others lacks
            nn.init.zeros_(head.tail[1].weight), nn.init.zeros_(head.tail[1].bias)
        losses = model(*(255 * x for x in batch())).losses
        found.append((losses["rec"], losses["cl"]))
    torch.testing.assert_close(*found)
