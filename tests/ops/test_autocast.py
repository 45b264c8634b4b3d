import pytest
import torch
from support.calls import CALLS, IMAGES


def under_autocast(name, dtype):
    function, make = CALLS[name]
    tensors = [t.to(dtype).requires_grad_() for t in make()]
    with torch.autocast("cpu", torch.bfloat16):
        output = function(*tensors)
    return output, torch.autograd.grad(output.float().sum(), tensors)


@pytest.mark.parametrize("name", CALLS)
def test_dtypes(backend, name):
    output, grads = under_autocast(name, torch.float32)
    # Convolutions as PyTorch's; similarities and losses need float32's range and precision.
    assert output.dtype == (torch.bfloat16 if name in IMAGES else torch.float32)
    assert all(grad.dtype == torch.float32 for grad in grads)


@pytest.mark.parametrize("name", CALLS)
def test_float64_is_left_alone(backend, name):
    output, _ = under_autocast(name, torch.float64)
    assert output.dtype == torch.float64
