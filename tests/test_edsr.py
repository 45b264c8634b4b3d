import pytest
import torch
from plain_edsr import PlainEDSR
from tolerance import assert_close
from util import channels_last, rand

from clsd_fast import EDSR


@pytest.mark.parametrize("scale, count", [(2, 1_369_859), (3, 1_554_499), (4, 1_517_571)])
def test_trainable_parameters(scale, count):
    student = EDSR(scale)
    assert sum(p.numel() for p in student.parameters() if p.requires_grad) == count


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_state_dict_is_that_of_edsr_pytorch(scale):
    plain, student = PlainEDSR(scale, 16, 64).state_dict(), EDSR(scale).state_dict()
    assert list(plain) == sorted(student, key=list(plain).index)
    assert {k: v.shape for k, v in plain.items()} == {k: v.shape for k, v in student.items()}


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equals_plain_pytorch(backend, scale):
    torch.manual_seed(scale)
    plain = PlainEDSR(scale, 3, 16, res_scale=0.1).double()
    student = EDSR(scale, 3, 16, res_scale=0.1).double()
    student.load_state_dict(plain.state_dict())
    lr = (rand(2, 3, 7, 5) * 255).requires_grad_()
    outputs = student(lr), plain(lr)
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-10)
    grads = [torch.autograd.grad(y.square().mean(), lr)[0] for y in outputs]
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_float32(backend, layout):
    torch.manual_seed(0)
    plain, student = PlainEDSR(2, 4, 64), EDSR(2, 4, 64)
    student.load_state_dict(plain.state_dict())
    lr = (rand(2, 3, 9, 8) * 255).float().contiguous(memory_format=layout)
    with torch.no_grad():
        ours, theirs = student(lr), plain(lr)
        assert_close(ours, plain.double()(lr.double()), theirs, "image")


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
