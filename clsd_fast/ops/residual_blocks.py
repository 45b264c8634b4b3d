"""Chains of residual blocks."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import cast

from torch import Tensor

from .. import reference
from .._library import register
from ..backend import has_kernel, uses_kernel
from . import _checks
from ._images import empty_hidden, empty_images, fake_conv_grads

#: Blocks of one autograd node at most, of all its chains. What they save is freed when it ends, and
#: their parameters' gradients come then; all together, they need fewer and fuller launches.
SECTION = 8

#: weights1, biases1, weights2 and biases2 of :func:`residual_blocks`.
Parameters = tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]


def residual_blocks(
    x: Tensor,
    weights1: Sequence[Tensor],
    biases1: Sequence[Tensor],
    weights2: Sequence[Tensor],
    biases2: Sequence[Tensor],
    res_scale: float | Tensor = 1.0,
    *,
    taps: Sequence[int] = (),
) -> tuple[Tensor, list[Tensor]]:
    """Residual blocks one after another, and the maps between them that are asked for.

    Equivalent to::

        maps = []
        for weight1, bias1, weight2, bias2 in zip(weights1, biases1, weights2, biases2):
            x = residual_block(x, weight1, bias1, weight2, bias2, res_scale)
            maps.append(x)
        x, [maps[tap - 1] for tap in taps]

    Args:
        x: images [N, C, H, W]; float32, float64, bfloat16 or float16; any strides.
        weights1: [M, C, 3, 3] of each block, of x's dtype or, beside 16-bit x, float32; of x's
            device. M may differ from block to block.
        biases1: [M] of each block, or empty for blocks without.
        weights2: [C, M, 3, 3] of each block.
        biases2: [C] of each block, or empty.
        res_scale: factor of every branch, as in :func:`clsd_fast.conv3x3`.
        taps: numbers of blocks, counted from 1.

    Returns:
        The last block's map y, [N, C, H, W] in x's dtype; channels_last if x is, else contiguous.
        And, alike, the maps after the blocks of ``taps``; that of the last one is y itself.

    Raises:
        ValueError: if a shape, dtype, device, length or tap does not fit.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    Autocast, the parameters' dtypes, and values that are not finite or very large are as in
    :func:`clsd_fast.conv3x3`. Saved for backward: x, the weights, and of every block the hidden map
    and the result; nothing where no gradient is recorded. Up to 8 blocks have their gradients
    computed together.

    Source: Lim et al., Enhanced Deep Residual Networks (arXiv 1707.02921), figure 2c.
    """
    op = "residual_blocks"
    (x,) = _checks.cast(x)
    parameters = (weights1, biases1, weights2, biases2)
    _check(op, x, parameters)
    count = len(weights1)
    _checks.check_list(op, "taps", taps, "integers")
    taps = [_checks.integer(op, "taps", tap) for tap in taps]
    for tap in taps:
        if not 1 <= tap <= count:
            _checks.fail(op, f"taps in 1..{count}", tap)
    ends = sorted({*taps, count})
    res_scale = _checks.number(op, "res_scale", res_scale)
    if uses_kernel(op, x, *weights1, *weights2, number=res_scale):
        found = _forward([x], parameters, cast(float, res_scale), ends)
        maps = {number: images for number, (images,) in found.items()}
    else:
        with _checks.without_autocast(x):
            w1, b1, w2, b2 = map(list, parameters)
            kept, _ = reference.residual_blocks([x], w1, b1, w2, b2, res_scale, ends, False)
        maps = dict(zip(ends, kept, strict=True))
    return maps[count], [maps[tap] for tap in taps]


def kind_of_chain(x: Tensor, chain: Parameters) -> tuple | None:
    """What chains have in common that :func:`residual_chains` takes together; None for one that it
    does not take, as there is no kernel for it."""
    op, (x,) = "residual_blocks", _checks.cast(x)
    weights1, biases1, weights2, biases2 = chain
    if not has_kernel(op, x, *weights1, *weights2):
        return None
    shapes = tuple(weight.shape for weight in weights1)
    return x.shape, x.dtype, x.device, shapes, weights1[0].dtype, len(biases1), len(biases2)


def residual_chains(
    xs: Sequence[Tensor], chains: Sequence[Parameters], res_scale: float
) -> list[Tensor]:
    """Apply each chain to its own images, all by the same launches.

    Equivalent to::

        [residual_blocks(x, *chain, res_scale)[0] for x, chain in zip(xs, chains)]

    Args:
        xs: images [N, C, H, W] that are of one :func:`kind_of_chain` with the chains.
        chains: the parameters of each.
        res_scale: factor of every branch.

    Returns:
        [N, C, H, W] of each.
    """
    images = [_checks.cast(x)[0] for x in xs]
    for x, chain in zip(images, chains, strict=True):
        _check("residual_blocks", x, chain)
    lists = [
        [tensor for of_block in zip(*tensors, strict=True) for tensor in of_block]
        for tensors in zip(*chains, strict=True)
    ]
    count = len(chains[0][0])
    return _forward(images, lists, res_scale, [count])[count]


def _check(op: str, x: Tensor, parameters: tuple[Sequence[Tensor], ...]) -> None:
    _checks.check_images(op, "x", x)
    names = ("weights1", "biases1", "weights2", "biases2")
    for name, tensors in zip(names, parameters, strict=True):
        _checks.check_list(op, name, tensors)
        if any(tensor is None for tensor in tensors):
            _checks.fail(op, f"{name} a list of tensors, empty for none", "None in it")
    count = len(parameters[0])
    if count < 1:
        _checks.fail(op, "weights1 of at least one block", count)
    for name, tensors in zip(names, parameters, strict=True):
        if len(tensors) != count and (len(tensors) > 0 or name.startswith("weights")):
            _checks.fail(op, f"{name} of {count} blocks", len(tensors))
    for number, (weight1, bias1, weight2, bias2) in enumerate(_of_blocks(*parameters)):
        of_block = [f"{name}[{number}]" for name in names]
        _checks.check_residual_block(op, x, weight1, bias1, weight2, bias2, of_block)
        _checks.check_type(op, parameters[0][0].dtype, x.device, **{of_block[0]: weight1})


def _of_blocks(weights1, biases1, weights2, biases2):
    none = [None] * len(weights1)
    return zip(weights1, biases1 or none, weights2, biases2 or none, strict=True)


def _sections(ends: Sequence[int], length: int = SECTION) -> Iterator[tuple[int, int]]:
    """Slices of at most ``length`` blocks. None ends at a tap where that can be avoided: two
    gradients of what is one section's result and the next one's input would meet in an addition of
    whole maps."""
    start, count = 0, ends[-1]
    while start < count:
        stop = min(start + length, count)
        while stop < count and stop in ends and stop - start > 1:
            stop -= 1
        yield start, stop
        start = stop


def _forward(
    xs: list[Tensor], parameters: Sequence[Sequence[Tensor]], res_scale: float, ends: Sequence[int]
) -> dict[int, list[Tensor]]:
    """The maps of all chains by the numbers of their blocks, those of ``ends`` at least."""
    found: dict[int, list[Tensor]] = {}
    chains = len(xs)
    for start, stop in _sections(ends, max(1, SECTION // chains)):
        section = [list(tensors[start * chains : stop * chains]) for tensors in parameters]
        tensors = [*xs, *(tensor for tensors in section for tensor in tensors)]
        saves = _checks.records_gradient(*tensors)
        numbers = range(start + 1, stop + 1)
        kept = [n - start for n in numbers if saves or n in ends or n == stop]
        maps, _ = _residual_blocks(xs, *section, res_scale, kept, saves)
        for index, number in enumerate(kept):
            found[start + number] = maps[index * chains :][:chains]
        xs = found[stop]
    return found


def _fake(xs, weights1, biases1, weights2, biases2, res_scale, kept, save_hidden):
    maps = [empty_images(x, x.shape[1]) for _ in kept for x in xs]
    if not save_hidden:
        return maps, []
    return maps, [empty_hidden(xs[i % len(xs)], weight) for i, weight in enumerate(weights1)]


def _fake_backward(
    grad_maps, at, xs, maps, hiddens, weights1, weights2, res_scale, needs_x, needs_params
):
    def grads(image, weights):
        found = [
            fake_conv_grads(image, weight, False, needs_params, needs_params)[1:]
            for weight in weights
        ]
        return [list(tensors) for tensors in zip(*found, strict=True)]

    grad_xs = [empty_images(x, x.shape[1]) if needs_x else x.new_empty(0) for x in xs]
    return grad_xs, *grads(xs[0], weights1), *grads(hiddens[0], weights2)


def _setup_context(ctx, inputs, output):
    xs, weights1, _, weights2, _, res_scale, kept, save_hidden = inputs
    maps, hiddens = output
    ctx.mark_non_differentiable(*hiddens)
    ctx.set_materialize_grads(False)  # most maps have no gradient of their own
    ctx.chains, ctx.count = len(xs), len(weights1)
    ctx.save_for_backward(*xs, *maps[: -ctx.chains], *hiddens, *weights1, *weights2)
    ctx.res_scale = res_scale
    ctx.save_hidden = save_hidden and ctx.chains * len(kept) == ctx.count


def _backward(ctx, grad_maps, _):
    if not ctx.save_hidden:
        raise RuntimeError(
            "residual_blocks: expected save_hidden=True and all maps kept for a gradient, got less"
        )
    needs_xs, *needed = ctx.needs_input_grad[:5]
    grads = [[None] * len(needs) for needs in (needs_xs, *needed)]
    saved = iter(ctx.saved_tensors)
    maps, hiddens, weights1, weights2 = (list(islice(saved, ctx.count)) for _ in range(4))
    for at, chains in _chains_by_gradients(grad_maps, ctx.chains).items():
        # Of the blocks up to the last gradient; of the maps, those before them, x first.
        indices = [i * ctx.chains + chain for i in range(at[-1]) for chain in chains]
        grads_at = [grad_maps[(number - 1) * ctx.chains + c] for number in at for c in chains]
        images, *others = (
            [tensors[i] for i in indices] for tensors in (maps, hiddens, weights1, weights2)
        )
        xs, between = images[: len(chains)], images[len(chains) :]
        options = ctx.res_scale, any(needs_xs), any(map(any, needed))
        found = _residual_blocks_backward(grads_at, list(at), xs, between, *others, *options)
        for target, needs, tensors in zip(grads, (needs_xs, *needed), found, strict=True):
            for index, tensor in zip(indices, tensors, strict=False):
                if target and needs[index]:  # there may be no biases
                    target[index] = tensor
    return *grads, None, None, None


def _chains_by_gradients(
    grad_maps: Sequence[Tensor | None], count: int
) -> dict[tuple[int, ...], list[int]]:
    """The chains, by the blocks whose maps have gradients; those without any are left out."""
    found: dict[tuple[int, ...], list[int]] = {}
    for chain in range(count):
        grads = enumerate(grad_maps[chain::count], start=1)
        if at := tuple(number for number, grad in grads if grad is not None):
            found.setdefault(at, []).append(chain)
    return found


_residual_blocks = register(
    "residual_blocks",
    reference=reference.residual_blocks,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_residual_blocks_backward = register(
    "residual_blocks_backward", reference=reference.residual_blocks_backward, fake=_fake_backward
)
