import pytest
import torch
from support.plain_edsr import PlainEDSR
from support.util import channels_last, rand
from tolerance import WINOGRAD_FACTOR, assert_close

from clsd_fast import EDSR


@pytest.mark.parametrize("scale, count", [(2, 1_369_859), (3, 1_554_499), (4, 1_517_571)])
def test_trainable_parameters(scale, count):
    student = EDSR(scale)
    assert sum(p.numel() for p in student.parameters() if p.requires_grad) == count


def edsr_pytorch_shapes(scale):
    """The keys and shapes of an official EDSR-baseline file, written out."""
    weights = {"sub_mean": (3, 3, 1, 1), "add_mean": (3, 3, 1, 1), "head.0": (64, 3, 3, 3)}
    for i in range(16):
        weights |= {f"body.{i}.body.0": (64, 64, 3, 3), f"body.{i}.body.2": (64, 64, 3, 3)}
    weights |= {"body.16": (64, 64, 3, 3), "tail.1": (3, 64, 3, 3)}
    weights["tail.0.0"] = (576 if scale == 3 else 256, 64, 3, 3)
    if scale == 4:
        weights["tail.0.2"] = (256, 64, 3, 3)
    shapes = {f"{name}.weight": shape for name, shape in weights.items()}
    return shapes | {f"{name}.bias": shape[:1] for name, shape in weights.items()}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_loads_the_state_dict_of_edsr_pytorch(scale):
    shapes, student = edsr_pytorch_shapes(scale), EDSR(scale)
    assert {k: tuple(v.shape) for k, v in student.state_dict().items()} == shapes
    file = {name: torch.randn(shape) for name, shape in shapes.items()}
    student.load_state_dict(file, strict=True)
    assert all(torch.equal(file[name], value) for name, value in student.state_dict().items())
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert frozen == {f"{m}_mean.{p}" for m in ("sub", "add") for p in ("weight", "bias")}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equals_plain_pytorch(backend, scale):
    torch.manual_seed(scale)
    plain = PlainEDSR(scale, 3, 16, res_scale=0.1).double()
    student = EDSR(scale, 3, 16, res_scale=0.1).double()
    student.load_state_dict(plain.state_dict())
    lr = (rand(2, 3, 7, 5) * 255).requires_grad_()
    outputs = student(lr), plain(lr)
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    grads = [torch.autograd.grad(y.square().mean(), lr)[0] for y in outputs]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_tail_is_composed_or_not(backend, scale):
    default, *others = (EDSR(scale, 2, 8, collapse=c).double() for c in (None, True, False))
    lr = rand(2, 3, 7, 5) * 255
    for student, collapse in zip(others, (True, False), strict=True):
        assert student.tail.collapse is collapse
        student.load_state_dict(default.state_dict(), strict=True)
        torch.testing.assert_close(student(lr), default(lr), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_float32(backend, layout):
    torch.manual_seed(0)
    plain, student = PlainEDSR(2, 4, 64), EDSR(2, 4, 64)
    student.load_state_dict(plain.state_dict())
    lr = (rand(2, 3, 9, 8) * 255).float().contiguous(memory_format=layout)
    with torch.no_grad():
        ours, theirs = student(lr), plain(lr)
        factor = WINOGRAD_FACTOR if backend == "native" else 1.0
        assert_close(ours, plain.double()(lr.double()), theirs, "image", factor)


@pytest.mark.parametrize("value_range", [1.0, 255.0])
def test_a_grey_world_of_zero_weights_is_the_mean_colour(value_range):
    student = EDSR(2, 1, 4, value_range=value_range)
    for name, parameter in student.named_parameters():
        if "mean" not in name:
            torch.nn.init.zeros_(parameter)
    expected = value_range * torch.tensor([0.4488, 0.4371, 0.4040])
    sr = student(torch.rand(1, 3, 2, 2))
    torch.testing.assert_close(sr, expected.view(1, 3, 1, 1).expand(1, 3, 4, 4))


def test_channels_last_goes_through(backend):
    student = EDSR(3, 2, 8).to(memory_format=torch.channels_last)
    sr = student(channels_last(rand(1, 3, 4, 5).float()))
    assert sr.is_contiguous(memory_format=torch.channels_last)


def test_compiles_as_one_graph(backend):
    torch._dynamo.reset()
    student = EDSR(4, 2, 8)
    lr = rand(1, 3, 4, 5).float()
    compiled = torch.compile(student, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(lr), student(lr))


@pytest.mark.parametrize(
    "make, sentence",
    [
        (lambda: EDSR(5), "EDSR: expected scale in {2, 3, 4}, got 5"),
        (
            lambda: EDSR(2, 0),
            "EDSR: expected at least 1 block of 1 channel, got 0 blocks of 64 channels",
        ),
        (
            lambda: EDSR(2, 1, 4)(rand(3, 4, 4)),
            "EDSR: expected images of shape [B, 3, h, w], got [3, 4, 4]",
        ),
        (
            lambda: EDSR(2, 1, 4)(rand(1, 1, 4, 4)),
            "EDSR: expected images of shape [B, 3, h, w], got [1, 1, 4, 4]",
        ),
    ],
)
def test_errors(make, sentence):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == sentence
