"""Valid calls of every public function, as (function, tensors), and of every operator."""

import itertools
from functools import partial

import torch

import clsd_fast
from clsd_fast import reference
from support.util import rand


def upsample_tail_by_4(x, weight1, bias1, weight2, bias2, out_weight, out_bias):
    weights, biases = [weight1, weight2], [bias1, bias2]
    return clsd_fast.upsample_tail(x, weights, biases, out_weight, out_bias, 4)


def block_parameters(count, channels, hidden):
    """weight1, bias1, weight2 and bias2 of each residual block."""
    shapes = ((hidden, channels, 3, 3), (hidden,), (channels, hidden, 3, 3), (channels,))
    return [
        rand(*shape, seed=seed) / (3 * shape[1] ** 0.5 if len(shape) > 1 else 1)
        for seed in range(count)
        for shape in shapes
    ]


def residual_blocks(x, *parameters):
    """Of a chain with a tap, by the parameters block by block."""
    y, (tapped,) = clsd_fast.residual_blocks(
        x, *(parameters[i::4] for i in range(4)), 0.5, taps=(2,)
    )
    return y + 0.5 * tapped


def tail_tensors(batch, channels, middle, last, height, width):
    """x, weight and bias of each of three convolutions."""
    sizes = ((4 * middle, channels), (4 * last, middle), (3, last))
    parameters = [(rand(k, c, 3, 3), rand(k)) for k, c in sizes]
    return [rand(batch, channels, height, width), *(t for pair in parameters for t in pair)]


IMAGES = {
    "conv3x3": (
        lambda x, w, b, r: clsd_fast.conv3x3(x, w, b, residual=r, res_scale=0.5, relu=True),
        lambda: [rand(2, 4, 5, 6), rand(6, 4, 3, 3), rand(6), rand(2, 6, 5, 6)],
    ),
    "conv3x3 leaky_relu": (
        lambda x, w, b, r: clsd_fast.conv3x3(
            x, w, b, residual=r, activation="leaky_relu", negative_slope=0.2
        ),
        lambda: [rand(2, 4, 5, 6), rand(6, 4, 3, 3), rand(6), rand(2, 6, 5, 6)],
    ),
    "conv3x3 prelu": (
        lambda x, w, b, r, s: clsd_fast.conv3x3(
            x, w, b, residual=r, activation="prelu", negative_slope=s
        ),
        lambda: [rand(2, 4, 5, 6), rand(6, 4, 3, 3), rand(6), rand(2, 6, 5, 6), rand(6, seed=1)],
    ),
    "residual_block": (
        partial(clsd_fast.residual_block, res_scale=0.5),
        lambda: [rand(2, 4, 5, 6), rand(4, 4, 3, 3), rand(4), rand(4, 4, 3, 3, seed=1), rand(4)],
    ),
    "residual_blocks": (
        residual_blocks,
        lambda: [rand(2, 4, 5, 6), *block_parameters(3, 4, 5)],
    ),
    "pixel_shuffle_upsample": (
        partial(clsd_fast.pixel_shuffle_upsample, upscale_factor=2),
        lambda: [rand(2, 4, 5, 6), rand(8, 4, 3, 3), rand(8)],
    ),
    "upsample_tail x3": (
        lambda x, w, b, v, c: clsd_fast.upsample_tail(x, [w], [b], v, c, 3),
        lambda: [rand(2, 4, 5, 6), rand(18, 4, 3, 3), rand(18), rand(3, 2, 3, 3), rand(3)],
    ),
    "upsample_tail x4": (upsample_tail_by_4, lambda: tail_tensors(2, 4, 2, 3, 2, 5)),
}
ROWS = {
    **{
        f"pairwise_similarity {metric}": (
            partial(clsd_fast.pairwise_similarity, metric=metric),
            lambda: [rand(2, 7, 9), rand(2, 5, 9)],
        )
        for metric in ("cosine", "dot", "l1")
    },
    "info_nce": (clsd_fast.info_nce, lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1)]),
    "info_nce negatives": (
        clsd_fast.info_nce,
        lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1), rand(2, 5, 9)],
    ),
    "info_nce excluding": (
        lambda q, k: clsd_fast.info_nce(q, k, labels=torch.tensor([0, 0, 1, 2, 1, 3, 4])),
        lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1)],
    ),
    "info_nce learned temperature": (
        lambda q, k, t: clsd_fast.info_nce(q, k, temperature=t.abs() + 0.1),
        lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1), rand(1)],
    ),
    "distance_ratio_loss": (
        clsd_fast.distance_ratio_loss,
        lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1)],
    ),
    "distance_ratio_loss negatives": (
        clsd_fast.distance_ratio_loss,
        lambda: [rand(2, 7, 9), rand(2, 7, 9, seed=1), rand(2, 5, 9)],
    ),
}
CALLS = {**IMAGES, **ROWS}

# Large enough for several register tiles, bands, blocks and threads.
LARGE = {
    "conv3x3 large": (
        clsd_fast.conv3x3,
        lambda: [rand(3, 16, 33, 29), rand(32, 16, 3, 3), rand(32)],
    ),
    "conv3x3 large, odd channels": (
        clsd_fast.conv3x3,
        lambda: [rand(3, 5, 33, 29), rand(19, 5, 3, 3), rand(19)],
    ),
    "residual_block large": (
        clsd_fast.residual_block,
        lambda: [rand(2, 16, 33, 29), rand(16, 16, 3, 3), rand(16), rand(16, 16, 3, 3), rand(16)],
    ),
    "upsample_tail x4 large": (upsample_tail_by_4, lambda: tail_tensors(3, 16, 16, 17, 33, 29)),
    "pairwise_similarity l1 large": (
        partial(clsd_fast.pairwise_similarity, metric="l1"),
        lambda: [rand(70, 10_000), rand(50, 10_000)],
    ),
    "info_nce large": (clsd_fast.info_nce, lambda: [rand(150, 70), rand(150, 70, seed=1)]),
}

X, WEIGHT, WEIGHT2 = rand(2, 3, 4, 5), rand(4, 3, 3, 3), rand(3, 4, 3, 3)
MAP, HIDDEN = rand(2, 4, 4, 5), rand(2, 4, 4, 5, seed=1).relu()
CHAIN = ([WEIGHT, -WEIGHT], [rand(4), rand(4, seed=1)], [WEIGHT2] * 2, [rand(3)] * 2)
# The second has the first one's blocks in reverse.
CHAINS = [[first[0], first[1], first[1], first[0]] for first in CHAIN]
TAIL_BY_2 = (X, rand(8, 3, 3, 3), rand(8), None, None, rand(3, 2, 3, 3))
TAIL_BY_4 = (X, rand(8, 3, 3, 3), None, rand(12, 2, 3, 3), rand(12), rand(2, 3, 3, 3))
ROWS_A, ROWS_B, ROWS_C = rand(2, 7, 5), rand(2, 7, 5, seed=1), rand(2, 3, 5)
STATISTICS = rand(2, 7, seed=1).abs() + 8, rand(2, 7, seed=2).abs() + 1
MASK, LABELS = rand(2, 7, 7) > 0.5, torch.arange(14).reshape(2, 7) % 3
INFO_NCE = [
    (ROWS_A, ROWS_B, None, None, None, None, 0.3, "mean"),
    (ROWS_A, ROWS_B, ROWS_C, None, None, None, 0.3, "none"),
    (ROWS_A, ROWS_B, None, MASK, LABELS, torch.tensor(0.2).double(), 1.0, "sum"),
    (ROWS_A, ROWS_B, ROWS_C, MASK[..., :3], None, None, 0.3, "mean"),
    (ROWS_A[:, :4], ROWS_B, None, MASK[:, :4], LABELS, None, 0.3, "none"),
]
INFO_NCE_FORWARD = [
    (*arguments, save_gradients)
    for arguments in INFO_NCE
    for save_gradients in ([False] if arguments[-1] == "none" else [False, True])
]


def info_nce_saved(query, *options):
    """A gradient of the loss, and statistics, for a call of these arguments."""
    rows = query.shape[1]
    grad_loss = rand(2, 7)[:, :rows] if options[-1] == "none" else rand()
    return grad_loss, torch.stack([*STATISTICS, rand(2, 7, seed=3)])[..., :rows].contiguous()


def tail_saved(x, *parameters, factor, needs):
    """The arguments of a tail's backward for a call of these arguments."""
    kernel = reference.upsample_tail(x, *parameters, None, factor)[1]
    outputs, (batch, _, height, width) = len(parameters[-1]), x.shape
    grad = rand(batch, outputs, factor * height, factor * width)
    return grad, x, kernel, *parameters, factor, *needs


def of_two_tails(x, *parameters):
    """The lists of upsample_tails from a tail's tensors, which the second has negated."""
    return [[] if t is None else [t, -t] for t in (x, *parameters)]


SHIFT = rand(3, 3, 1, 1), rand(3)


def tails_saved(*tensors, factor, needs, shift_weight=None):
    """The arguments of a backward of two tails."""
    pairs = [
        tail_saved(*tail, factor=factor, needs=())[:-1]
        for tail in (tensors, [t if t is None else -t for t in tensors])
    ]
    lists = [[] if pair[0] is None else list(pair) for pair in zip(*pairs, strict=True)]
    return *lists, shift_weight, factor, *needs


# Calls of the operators themselves, (operator, arguments), in float64.
FORWARDS = [
    ("conv3x3", (X, WEIGHT, rand(4), MAP, 0.5, True)),
    ("conv3x3", (X, WEIGHT, None, None, 0.5, False)),
    ("conv3x3", (X, WEIGHT, rand(4), MAP, 0.5, True, 0.2, None)),
    ("conv3x3s", ([X, -X], [WEIGHT, -WEIGHT], [rand(4), rand(4, seed=1)], MAP)),
    ("conv3x3s", ([X], [WEIGHT], [], None)),
    ("residual_block", (X, WEIGHT, rand(4), WEIGHT2, rand(3), 0.5, True)),
    ("residual_blocks", ([X], *CHAIN, 0.5, [1, 2], True)),
    ("residual_blocks", ([X], CHAIN[0], [], CHAIN[2], [], 0.5, [1, 2], True)),
    ("residual_blocks", ([X, -X], *CHAINS, 0.5, [1, 2], True)),
    ("pixel_shuffle_upsample", (X, WEIGHT, rand(4), 2)),
    ("upsample_tail", (*TAIL_BY_2, rand(3), 2)),
    ("upsample_tail", (*TAIL_BY_4, None, 4)),
    ("upsample_tails", (*of_two_tails(*TAIL_BY_2, rand(3)), None, None, 2)),
    ("upsample_tails", (*of_two_tails(*TAIL_BY_4, None), None, None, 4)),
    ("l1_losses", (X, [-X, MAP[:, :3], X], 255.0)),
    *(("pairwise_similarity", (ROWS_A, ROWS_C, metric)) for metric in ("cosine", "dot", "l1")),
    *(("info_nce", arguments) for arguments in INFO_NCE_FORWARD),
    ("distance_ratio_loss", (ROWS_A, ROWS_B, None, 0.1)),
    ("distance_ratio_loss", (ROWS_A, ROWS_B, ROWS_C, 0.1)),
]
BACKWARDS = [
    ("conv3x3_backward", (MAP, X, WEIGHT, 0.5, True, True, True)),
    ("conv3x3_backward", (MAP, X, WEIGHT, 0.5, False, True, False)),
    ("conv3x3s_backward", ([MAP, HIDDEN], [X, -X], [WEIGHT, -WEIGHT], True, True, True)),
    ("conv3x3s_backward", ([MAP], [X], [WEIGHT], False, True, False)),
    ("residual_block_backward", (X, X, HIDDEN, WEIGHT, WEIGHT2, 0.5, True, True)),
    ("residual_block_backward", (X, X, HIDDEN, WEIGHT, WEIGHT2, 0.5, True, False)),
    (
        "residual_blocks_backward",
        ([X, X], [1, 2], [X], [X], [HIDDEN, HIDDEN], *CHAIN[::2], 0.5, True, True),
    ),
    (
        "residual_blocks_backward",
        ([X], [2], [X], [X], [HIDDEN, HIDDEN], *CHAIN[::2], 0.5, False, True),
    ),
    (
        "residual_blocks_backward",
        ([X, -X] * 2, [1, 2], [X, -X], [-X, X], [HIDDEN] * 4, *CHAINS[::2], 0.5, True, True),
    ),
    ("pixel_shuffle_upsample_backward", (rand(2, 1, 8, 10), X, WEIGHT, 2, True, True, True)),
    ("upsample_tail_backward", tail_saved(*TAIL_BY_2, factor=2, needs=(True, True))),
    ("upsample_tail_backward", tail_saved(*TAIL_BY_4, factor=4, needs=(True, True))),
    ("upsample_tail_backward", tail_saved(*TAIL_BY_4, factor=4, needs=(True, False))),
    ("upsample_tails_backward", tails_saved(*TAIL_BY_2, factor=2, needs=(True, True))),
    ("upsample_tails_backward", tails_saved(*TAIL_BY_4, factor=4, needs=(True, False))),
    (
        "upsample_tails_backward",
        tails_saved(*TAIL_BY_2, factor=2, needs=(True, True), shift_weight=SHIFT[0]),
    ),
    *(
        ("l1_losses_backward", (*grads, X, [-X, MAP[:, :3], X], 255.0))
        for grads in ((rand(), rand(seed=1)), (rand(), None), (None, rand()))
    ),
    *(
        ("pairwise_similarity_backward", (rand(2, 7, 3), ROWS_A, ROWS_C, metric))
        for metric in ("cosine", "dot", "l1")
    ),
    *(("info_nce_backward", info_nce_saved(*arguments) + arguments) for arguments in INFO_NCE),
    *(
        ("distance_ratio_loss_backward", (rand(2, 7), *STATISTICS, ROWS_A, ROWS_B, third, 0.3))
        for third in (None, ROWS_C)
    ),
]

#: bias, residual, relu and res_scale of conv3x3: whether each is given, and the last one's value.
EPILOGUES = list(itertools.product([True, False], [True, False], [True, False], [0.1, 1.0]))

#: Input and output channels, height and width for which the native library convolves float32
#: images by each of its algorithms.
ALGORITHMS = {
    "winograd": (16, 16, 8, 12),
    "narrow_input": (3, 16, 4, 5),
    "narrow_output": (16, 3, 4, 5),
    "direct": (5, 7, 4, 5),
}


def algorithm_calls():
    """Calls of the convolutions' operators by each algorithm, forward and backward."""
    calls = []
    for channels, outputs, *size in ALGORITHMS.values():
        x, y = rand(2, channels, *size).float(), rand(2, outputs, *size).float()
        weight, back = rand(outputs, channels, 3, 3).float(), rand(channels, outputs, 3, 3).float()
        calls += [
            ("conv3x3", (x, weight, None, None, 1.0, False)),
            ("conv3x3_backward", (y, x, weight, 1.0, True, True, True)),
            ("residual_block", (x, weight, None, back, None, 1.0, False)),
            ("residual_block_backward", (x, x, y.relu(), weight, back, 1.0, True, True)),
        ]
    return calls
