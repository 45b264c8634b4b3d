import pytest
import torch
from util import rand

from clsd_fast.nn import Conv3x3, PixelShuffleUpsampler, ResidualBlock


def test_residual_block_is_its_sequential(backend):
    block = ResidualBlock(8, res_scale=0.3).double()
    x = rand(2, 8, 5, 6)
    torch.testing.assert_close(block(x), x + 0.3 * torch.nn.Sequential(*block.body)(x))
    assert set(block.state_dict()) == {
        "body.0.weight",
        "body.0.bias",
        "body.2.weight",
        "body.2.bias",
    }


@pytest.mark.parametrize("factor, keys", [(2, {"0"}), (3, {"0"}), (4, {"0", "2"})])
def test_upsampler_is_its_sequential(backend, factor, keys):
    upsampler = PixelShuffleUpsampler(factor, 6).double()
    x = rand(2, 6, 4, 5)
    torch.testing.assert_close(upsampler(x), torch.nn.Sequential(*upsampler)(x))
    assert {key.split(".")[0] for key in upsampler.state_dict()} == keys


def test_upsampler_refuses_other_factors():
    with pytest.raises(ValueError, match=r"expected upscale_factor in \{2, 3, 4\}, got 5"):
        PixelShuffleUpsampler(5, 6)


def test_conv_is_nn_conv2d(backend):
    conv = Conv3x3(4, 6).double()
    x, residual = rand(2, 4, 5, 6), rand(2, 6, 5, 6)
    expected = torch.nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x), expected)
    torch.testing.assert_close(conv(x, residual), residual + expected)


def test_same_seed_same_parameters_as_nn_conv2d():
    torch.manual_seed(3)
    ours = Conv3x3(4, 6)
    torch.manual_seed(3)
    theirs = torch.nn.Conv2d(4, 6, 3, padding=1)
    assert torch.equal(ours.weight, theirs.weight) and torch.equal(ours.bias, theirs.bias)
