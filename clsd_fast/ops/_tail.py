"""What the operators of one composed tail and of several share: argument checks and fakes."""

from .._tail_axes import AXES, STAGES
from . import _checks
from ._images import empty_images


def checked(op, x, up_weights, up_biases, out_weight, out_bias, upscale_factor):
    """The operator's arguments from the public function's."""
    upscale_factor = _checks.integer(op, "upscale_factor", upscale_factor)
    _check_lengths(op, up_weights, up_biases, upscale_factor)
    _checks.check_images(op, "x", x)
    _check_parameters(op, x, up_weights, up_biases, out_weight, out_bias, upscale_factor)
    stages = [t for pair in zip(up_weights, up_biases, strict=True) for t in pair]
    stages += [None] * (4 - len(stages))
    return x, *map(_accumulated, (*stages, out_weight, out_bias)), upscale_factor


def _check_lengths(op, up_weights, up_biases, upscale_factor):
    if upscale_factor not in STAGES:
        _checks.fail(op, f"upscale_factor {_checks.in_words(STAGES)}", upscale_factor)
    count = len(STAGES[upscale_factor])
    for name, tensors in (("up_weights", up_weights), ("up_biases", up_biases)):
        _checks.check_list(op, name, tensors)
        if len(tensors) != count:
            _checks.fail(op, f"{count} {name} for upscale_factor {upscale_factor}", len(tensors))


def _check_parameters(op, x, up_weights, up_biases, out_weight, out_bias, upscale_factor):
    channels = x.shape[1]
    stages = zip(STAGES[upscale_factor], up_weights, up_biases, strict=True)
    for number, (stage, weight, bias) in enumerate(stages):
        name, square = f"up_weights[{number}]", stage**2
        _checks.check_tensor(op, name, weight)
        shape = weight.shape
        if len(shape) != 4 or shape[0] < 1 or shape[0] % square or shape[1:] != (channels, 3, 3):
            _checks.fail(op, f"{name} of shape [{square} M, {channels}, 3, 3]", list(shape))
        _checks.check_shape(op, f"up_biases[{number}]", bias, [shape[0]])
        parameters = {name: weight, f"up_biases[{number}]": bias}
        _checks.check_parameters(op, x, up_weights[0], **parameters)
        channels = shape[0] // square
    _checks.check_tensor(op, "out_weight", out_weight)
    shape = out_weight.shape
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != (channels, 3, 3):
        _checks.fail(op, f"out_weight of shape [K, {channels}, 3, 3]", list(shape))
    _checks.check_shape(op, "out_bias", out_bias, [shape[0]])
    _checks.check_parameters(op, x, up_weights[0], out_weight=out_weight, out_bias=out_bias)


def _accumulated(parameter):
    if parameter is None or parameter.element_size() > 2:
        return parameter
    return parameter.float()


def fake(x, up_weight1, up_bias1, up_weight2, up_bias2, out_weight, out_bias, upscale_factor):
    taps = AXES[upscale_factor][0].size
    composed = out_weight.new_empty(x.shape[1] + 1, taps, taps, out_weight.shape[0])
    return empty_images(x, out_weight.shape[0], upscale_factor), composed


def fake_backward(grad_output, x, composed, *arguments):
    up_weight1, _, up_weight2, _, out_weight, _, needs_x, needs_params = arguments
    grad_x = empty_images(x, x.shape[1]) if needs_x else x.new_empty(0)
    grads = []
    for weight in (up_weight1, up_weight2, out_weight):
        if needs_params and weight is not None:
            grads += [empty_images(weight, weight.shape[1]), composed.new_empty(weight.shape[0])]
        else:
            grads += [composed.new_empty(0), composed.new_empty(0)]
    return grad_x, *grads
