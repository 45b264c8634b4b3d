"""Bad calls get one sentence, the same from every backend and from the operators themselves."""

import numpy as np
import pytest
import torch
from support.util import rand

import clsd_fast
from clsd_fast import ops

ops_native = torch.ops.clsd_fast
X, W, B = rand(2, 4, 5, 6), rand(4, 4, 3, 3), rand(4)
TAIL_WEIGHTS = (W, B, None, None, rand(3, 1, 3, 3))
Q = rand(2, 7, 9)
MASK, LABELS = torch.zeros(2, 7, 7, dtype=torch.bool), torch.arange(14).reshape(2, 7)
NO_OPTIONS = (None, None, None, None)  # negative_keys, mask, labels, learned_temperature

BAD_CALLS = [
    (
        lambda: ops.conv3x3(rand(4, 5, 6), W),
        "conv3x3: expected x of shape [N, C, H, W] with C, H, W >= 1, got [4, 5, 6]",
    ),
    (
        lambda: ops.conv3x3(rand(2, 4, 0, 6), W),
        "conv3x3: expected x of shape [N, C, H, W] with C, H, W >= 1, got [2, 4, 0, 6]",
    ),
    (
        lambda: ops.conv3x3(X, rand(4, 3, 3, 3)),
        "conv3x3: expected weight of shape [K, 4, 3, 3], got [4, 3, 3, 3]",
    ),
    (lambda: ops.conv3x3(X, W, rand(5)), "conv3x3: expected bias of shape [4], got [5]"),
    (
        lambda: ops.conv3x3(X, W, residual=rand(2, 4, 5, 5)),
        "conv3x3: expected residual of shape [2, 4, 5, 6], got [2, 4, 5, 5]",
    ),
    (
        lambda: ops.conv3x3(X, W.float()),
        "conv3x3: expected weight of dtype float64, got float32",
    ),
    (
        lambda: ops.conv3x3(X.int(), W.int()),
        "conv3x3: expected x of dtype float32, float64, bfloat16, float16, got int32",
    ),
    (
        lambda: ops.conv3x3(X, W.to("meta")),
        "conv3x3: expected weight on cpu, got meta",
    ),
    (
        lambda: ops.conv3x3(X, W, activation="gelu"),
        "conv3x3: expected activation relu, leaky_relu, prelu or None, got gelu",
    ),
    (
        lambda: ops.conv3x3(X, W, relu=True, activation="leaky_relu"),
        "conv3x3: expected no relu=True beside activation leaky_relu, got both",
    ),
    (
        lambda: ops.conv3x3(X, W, activation="leaky_relu", negative_slope=rand(1)),
        "conv3x3: expected negative_slope a number for leaky_relu, got a tensor, as prelu takes",
    ),
    (
        lambda: ops.conv3x3(X, W, activation="prelu"),
        "conv3x3: expected negative_slope a tensor for prelu, got 0.01",
    ),
    (
        lambda: ops.conv3x3(X, W, activation="prelu", negative_slope=rand(3)),
        "conv3x3: expected negative_slope of shape [1] or [4], got [3]",
    ),
    (
        lambda: ops.conv3x3(X, W, activation="prelu", negative_slope=rand(4).float()),
        "conv3x3: expected negative_slope of dtype float64, got float32",
    ),
    (
        lambda: ops.residual_block(X, W, B, rand(4, 2, 3, 3), B),
        "residual_block: expected weight2 of shape [4, 4, 3, 3], got [4, 2, 3, 3]",
    ),
    (
        lambda: ops.residual_block(X, rand(4, 4, 5, 5), B, W, B),
        "residual_block: expected weight1 of shape [K, 4, 3, 3], got [4, 4, 5, 5]",
    ),
    (
        lambda: ops.residual_block(X, W, B, W, rand(3)),
        "residual_block: expected bias2 of shape [4], got [3]",
    ),
    (
        lambda: ops.residual_blocks(X, [], [], [], []),
        "residual_blocks: expected weights1 of at least one block, got 0",
    ),
    (
        lambda: ops.residual_blocks(X, [W, W], [B], [W, W], []),
        "residual_blocks: expected biases1 of 2 blocks, got 1",
    ),
    (
        lambda: ops.residual_blocks(X, [W, W], [], [W], []),
        "residual_blocks: expected weights2 of 2 blocks, got 1",
    ),
    (
        lambda: ops.residual_blocks(X, [W, W], [B, B], [W, rand(4, 2, 3, 3)], []),
        "residual_blocks: expected weights2[1] of shape [4, 4, 3, 3], got [4, 2, 3, 3]",
    ),
    (
        lambda: ops.residual_blocks(X, [W, W], [B, rand(3)], [W, W], []),
        "residual_blocks: expected biases1[1] of shape [4], got [3]",
    ),
    (
        lambda: ops.residual_blocks(X.half(), [W.float(), W.half()], [], [W.float(), W.half()], []),
        "residual_blocks: expected weights1[1] of dtype float32, got float16",
    ),
    (
        lambda: ops.residual_blocks(X, [W, W], [], [W, W], [], taps=(3,)),
        "residual_blocks: expected taps in 1..2, got 3",
    ),
    (
        lambda: ops.upsample_tail(X, [W], [B], rand(3, 1, 3, 3), None, 5),
        "upsample_tail: expected upscale_factor 2, 3 or 4, got 5",
    ),
    (
        lambda: ops.upsample_tail(X, [W], [B], rand(3, 1, 3, 3), None, 4),
        "upsample_tail: expected 2 up_weights for upscale_factor 4, got 1",
    ),
    (
        lambda: ops.upsample_tail(X, [W], [], rand(3, 1, 3, 3), None, 2),
        "upsample_tail: expected 1 up_biases for upscale_factor 2, got 0",
    ),
    (
        lambda: ops.upsample_tail(rand(4, 5, 6), [W], [B], rand(3, 1, 3, 3), None, 2),
        "upsample_tail: expected x of shape [N, C, H, W] with C, H, W >= 1, got [4, 5, 6]",
    ),
    (
        lambda: ops.upsample_tail(X, [W], [B], rand(3, 1, 3, 3), None, 3),
        "upsample_tail: expected up_weights[0] of shape [9 M, 4, 3, 3], got [4, 4, 3, 3]",
    ),
    (
        lambda: ops.upsample_tail(X, [W, W], [B, None], rand(3, 1, 3, 3), None, 4),
        "upsample_tail: expected up_weights[1] of shape [4 M, 1, 3, 3], got [4, 4, 3, 3]",
    ),
    (
        lambda: ops.upsample_tail(X, [W], [rand(3)], rand(3, 1, 3, 3), None, 2),
        "upsample_tail: expected up_biases[0] of shape [4], got [3]",
    ),
    (
        lambda: ops.upsample_tail(X, [W], [B], rand(3, 4, 3, 3), None, 2),
        "upsample_tail: expected out_weight of shape [K, 1, 3, 3], got [3, 4, 3, 3]",
    ),
    (
        lambda: ops.upsample_tail(X, [W], [B], rand(3, 1, 3, 3).float(), None, 2),
        "upsample_tail: expected out_weight of dtype float64, got float32",
    ),
    (
        lambda: ops.pixel_shuffle_upsample(X, rand(6, 4, 3, 3), None, 2),
        "pixel_shuffle_upsample: expected weight of shape [4 K, 4, 3, 3], got [6, 4, 3, 3]",
    ),
    (
        lambda: ops.pixel_shuffle_upsample(X, W, B, 0),
        "pixel_shuffle_upsample: expected upscale_factor >= 1, got 0",
    ),
    (
        lambda: ops.pairwise_similarity(Q, Q, "euclidean"),
        "pairwise_similarity: expected metric cosine, dot or l1, got euclidean",
    ),
    (
        lambda: ops.pairwise_similarity(Q, rand(2, 7, 8)),
        "pairwise_similarity: expected key of shape [..., rows, 9], got [2, 7, 8]",
    ),
    (
        lambda: ops.pairwise_similarity(rand(9), rand(9)),
        "pairwise_similarity: expected query of shape [..., rows, D], got [9]",
    ),
    (
        lambda: ops.pairwise_similarity(Q, rand(3, 7, 9)),
        "pairwise_similarity: expected leading dimensions that broadcast, got query [2], key [3]",
    ),
    (
        lambda: ops.info_nce(Q, rand(2, 6, 9)),
        "info_nce: expected positive_key of shape [..., 7, 9], got [2, 6, 9]",
    ),
    (
        lambda: ops.info_nce(Q, Q, rand(2, 5, 8)),
        "info_nce: expected negative_keys of shape [..., rows, 9], got [2, 5, 8]",
    ),
    (lambda: ops.info_nce(Q, Q, temperature=0), "info_nce: expected temperature > 0, got 0"),
    (
        lambda: ops.info_nce(Q, Q, temperature=torch.ones(2)),
        "info_nce: expected temperature a number or a floating-point tensor of one element, "
        "got float32 of shape [2]",
    ),
    (
        lambda: ops.info_nce(Q, Q, mask=MASK[:, :6]),
        "info_nce: expected mask of shape [..., 7, 7], got [2, 6, 7]",
    ),
    (
        lambda: ops.info_nce(Q, Q, mask=MASK.float()),
        "info_nce: expected mask of dtype bool, got float32",
    ),
    (
        lambda: ops.info_nce(Q, Q, Q, labels=LABELS),
        "info_nce: expected no labels beside negative_keys, got both",
    ),
    (
        lambda: ops.info_nce(Q, Q, labels=LABELS[:, :6]),
        "info_nce: expected labels of shape [..., 7], got [2, 6]",
    ),
    (
        lambda: ops.info_nce(Q, Q, labels=LABELS.int()),
        "info_nce: expected labels of dtype int64, got int32",
    ),
    (
        lambda: ops.info_nce(Q, Q, labels=LABELS[0].expand(3, 7)),
        "info_nce: expected leading dimensions that broadcast, got rows [2], labels [3]",
    ),
    (
        lambda: ops.info_nce(Q, Q, reduction="max"),
        "info_nce: expected reduction none, mean or sum, got max",
    ),
    (
        lambda: ops.distance_ratio_loss(Q[:, :1], Q[:, :1]),
        "distance_ratio_loss: expected two rows or given negatives, got 1 row",
    ),
    (
        lambda: ops.distance_ratio_loss(Q, Q, rand(2, 0, 9)),
        "distance_ratio_loss: expected at least 1 row of negatives, got 0",
    ),
    (
        lambda: ops.distance_ratio_loss(Q, Q, eps=-1),
        "distance_ratio_loss: expected eps >= 0, got -1",
    ),
]


@pytest.mark.parametrize("call, sentence", BAD_CALLS, ids=[s for _, s in BAD_CALLS])
def test_public_functions(backend, call, sentence):
    with pytest.raises(ValueError) as caught:
        call()
    assert str(caught.value) == sentence


#: Every operator with arguments that fit, by name.
GOOD_CALLS = {
    "conv3x3": {"x": X, "weight": W, "bias": B, "relu": False, "residual": X, "res_scale": 1.0},
    "residual_block": {"x": X, "weight1": W, "bias1": B, "weight2": W, "bias2": B,
                       "res_scale": 1.0},
    "residual_blocks": {"x": X, "weights1": [W], "biases1": [B], "weights2": [W], "biases2": [B],
                        "res_scale": 1.0, "taps": [1]},
    "pixel_shuffle_upsample": {"x": X, "weight": W, "bias": B, "upscale_factor": 2},
    "upsample_tail": {"x": X, "up_weights": [W], "up_biases": [B], "out_weight": rand(3, 1, 3, 3),
                      "out_bias": rand(3), "upscale_factor": 2},
    "pairwise_similarity": {"query": Q, "key": Q, "metric": "dot"},
    "info_nce": {"query": Q, "positive_key": Q, "negative_keys": Q, "temperature": 0.1,
                 "reduction": "mean", "mask": MASK},
    "distance_ratio_loss": {"anchor": Q, "positive": Q, "negatives": Q, "eps": 0.1,
                            "reduction": "mean"},
}  # fmt: skip
STRANGE = {
    "None": None, "text": "x", "list": [1.5], "complex": 1j, "array": Q.numpy(), "object": object(),
    "sparse": rand(4, 4).to_sparse(), "mkldnn": rand(4).float().to_mkldnn(),
    "nested": torch.nested.nested_tensor([B, B]), "list of None": [None], "integers": LABELS,
}  # fmt: skip
#: What may be left out, or is a truth that any tensor has.
OPTIONAL = {"bias", "residual", "bias1", "bias2", "negative_keys", "negatives", "mask", "out_bias"}


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("op", GOOD_CALLS)
def test_arguments_of_another_type(backend, op, strange):
    """Whatever stands where a tensor, a number or a list of them should, under autocast too."""
    arguments, value = GOOD_CALLS[op], STRANGE[strange]
    getattr(ops, op)(**arguments)
    for name in arguments:
        if value is None and name in OPTIONAL or name == "up_biases" and strange == "list of None":
            continue
        with pytest.raises(ValueError, match=f"^{op}: expected .*, got "):
            getattr(ops, op)(**arguments | {name: value})
        with torch.autocast("cpu"), pytest.raises(ValueError, match=f"^{op}: expected .*, got "):
            getattr(ops, op)(**arguments | {name: value})


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(2), True])
def test_numbers_of_other_types(backend, number):
    expected = ops.conv3x3(X, W, res_scale=float(number))
    torch.testing.assert_close(ops.conv3x3(X, W, res_scale=number), expected, rtol=0, atol=0)
    factors = (2, np.int64(2), torch.tensor(2))
    for factor in factors:
        assert ops.pixel_shuffle_upsample(X, W, B, factor).shape == (2, 1, 10, 12)


BAD_OPERATOR_CALLS = [
    (
        lambda: ops_native.conv3x3(rand(4, 5, 6), W, None, None, 1.0, False),
        "conv3x3: expected x of shape [N, C, H, W] with C, H, W >= 1, got [4, 5, 6]",
    ),
    (
        lambda: ops_native.conv3x3(X, rand(4, 3, 3, 3), None, None, 1.0, False),
        "conv3x3: expected weight of shape [K, 4, 3, 3], got [4, 3, 3, 3]",
    ),
    (
        lambda: ops_native.conv3x3(X, W.float(), None, None, 1.0, False),
        "conv3x3: expected weight of dtype float64, got float32",
    ),
    (
        lambda: ops_native.conv3x3(X.int(), W.int(), None, None, 1.0, False),
        "conv3x3: expected x of dtype float32, float64, bfloat16, float16, got Int",
    ),
    (
        lambda: ops_native.conv3x3(X, W, B, rand(2, 4, 5, 5), 1.0, False),
        "conv3x3: expected residual of shape [2, 4, 5, 6], got [2, 4, 5, 5]",
    ),
    (
        lambda: ops_native.conv3x3(X, W, B, None, 1.0, True, 0.0, rand(1)),
        "conv3x3: expected slopes of shape [4], got [1]",
    ),
    (
        lambda: ops_native.conv3x3(X, W, B, None, 1.0, True, 0.0, B.float()),
        "conv3x3: expected slopes of dtype float64, got float32",
    ),
    (
        lambda: ops_native.conv3x3_backward(rand(2, 4, 5, 5), X, W, 1.0, True, True, True),
        "conv3x3_backward: expected grad_output of shape [2, 4, 5, 6], got [2, 4, 5, 5]",
    ),
    (
        lambda: ops_native.residual_block(X, W, B, rand(4, 2, 3, 3), B, 1.0, True),
        "residual_block: expected weight2 of shape [4, 4, 3, 3], got [4, 2, 3, 3]",
    ),
    (
        lambda: ops_native.residual_block_backward(X, X, rand(1, 4, 5, 6), W, W, 1.0, True, True),
        "residual_block_backward: expected hidden of shape [2, 4, 5, 6], got [1, 4, 5, 6]",
    ),
    (
        lambda: ops_native.conv3x3s([], [W], [], None),
        "conv3x3s: expected xs of at least one convolution, got 0",
    ),
    (
        lambda: ops_native.conv3x3s([X, X], [W], [], None),
        "conv3x3s: expected lists of 2 tensors, got 1",
    ),
    (
        lambda: ops_native.conv3x3s([X, X[:1]], [W, W], [], None),
        "conv3x3s: expected xs of shape [2, 4, 5, 6], got [1, 4, 5, 6]",
    ),
    (
        lambda: ops_native.conv3x3s([X, X], [W, rand(3, 4, 3, 3)], [], None),
        "conv3x3s: expected weight of shape [4, 4, 3, 3], got [3, 4, 3, 3]",
    ),
    (
        lambda: ops_native.conv3x3s_backward([X], [X, X], [W, W], True, True, True),
        "conv3x3s_backward: expected lists of 2 tensors, got 1",
    ),
    (
        lambda: ops_native.residual_blocks([], [W], [], [W], [], 1.0, [1], False),
        "residual_blocks: expected xs of at least one chain, got 0",
    ),
    (
        lambda: ops_native.residual_blocks([X, X], [W] * 3, [], [W] * 3, [], 1.0, [1], False),
        "residual_blocks: expected weights1 of equally many blocks for each of 2 chains, got 3",
    ),
    (
        lambda: ops_native.residual_blocks([X, X[:1]], [W, W], [], [W, W], [], 1.0, [1], False),
        "residual_blocks: expected xs of shape [2, 4, 5, 6], got [1, 4, 5, 6]",
    ),
    (
        lambda: ops_native.residual_blocks(
            [X, X], [W, rand(3, 4, 3, 3)], [], [W, rand(4, 3, 3, 3)], [], 1.0, [1], False
        ),
        "residual_blocks: expected weights1[1] of shape [4, 4, 3, 3], got [3, 4, 3, 3]",
    ),
    (
        lambda: ops_native.residual_blocks([X], [], [], [], [], 1.0, [1], False),
        "residual_blocks: expected weights1 of at least one block, got 0",
    ),
    (
        lambda: ops_native.residual_blocks([X], [W, W], [B], [W, W], [], 1.0, [2], False),
        "residual_blocks: expected biases1 of 2 blocks, got 1",
    ),
    (
        lambda: ops_native.residual_blocks(
            [X], [W, W], [], [W, rand(4, 2, 3, 3)], [], 1, [2], True
        ),
        "residual_blocks: expected weights2[1] of shape [4, 4, 3, 3], got [4, 2, 3, 3]",
    ),
    (
        lambda: ops_native.residual_blocks([X], [W, W], [B, rand(3)], [W, W], [], 1.0, [2], False),
        "residual_blocks: expected biases1[1] of shape [4], got [3]",
    ),
    (
        lambda: ops_native.residual_blocks([X], [W, W], [], [W, W], [], 1.0, [1], False),
        "residual_blocks: expected kept ascending from 1 to 2, got [1]",
    ),
    (
        lambda: ops_native.residual_blocks([X], [W, W], [], [W, W], [], 1.0, [0, 2], False),
        "residual_blocks: expected kept ascending from 1 to 2, got [0, 2]",
    ),
    (
        lambda: ops_native.residual_blocks_backward(
            [X], [2], [X], [], [X, X], [W, W], [W, W], 1.0, True, True
        ),
        "residual_blocks_backward: expected maps of 1 blocks, got 0",
    ),
    (
        lambda: ops_native.residual_blocks_backward(
            [X, X], [2], [X], [X], [X, X], [W, W], [W, W], 1.0, True, True
        ),
        "residual_blocks_backward: expected grad_maps of 1 blocks, got 2",
    ),
    (
        lambda: ops_native.residual_blocks_backward(
            [X], [2], [X], [X], [X, rand(2, 4, 5, 5)], [W, W], [W, W], 1.0, True, True
        ),
        "residual_blocks_backward: expected hiddens of shape [2, 4, 5, 6], got [2, 4, 5, 5]",
    ),
    (
        lambda: ops_native.pixel_shuffle_upsample(X, rand(6, 4, 3, 3), None, 2),
        "pixel_shuffle_upsample: expected weight of shape [4 K, 4, 3, 3], got [6, 4, 3, 3]",
    ),
    (
        lambda: ops_native.upsample_tail(X, W, B, None, None, rand(3, 1, 3, 3), None, 5),
        "upsample_tail: expected upscale_factor 2, 3 or 4, got 5",
    ),
    (
        lambda: ops_native.upsample_tail(X, W, B, None, None, rand(3, 1, 3, 3), None, 4),
        "upsample_tail: expected up_weight2 for upscale_factor 4, got none",
    ),
    (
        lambda: ops_native.upsample_tail(X, W, B, W, B, rand(3, 1, 3, 3), None, 2),
        "upsample_tail: expected no up_weight2 for upscale_factor 2, got one",
    ),
    (
        lambda: ops_native.upsample_tail(X, W, B, None, None, rand(3, 1, 3, 3), None, 3),
        "upsample_tail: expected up_weight1 of shape [9 M, 4, 3, 3], got [4, 4, 3, 3]",
    ),
    (
        lambda: ops_native.upsample_tail(X, W, rand(5), None, None, rand(3, 1, 3, 3), None, 2),
        "upsample_tail: expected up_bias1 of shape [4], got [5]",
    ),
    (
        lambda: ops_native.upsample_tail(X, W, B, None, None, rand(3, 2, 3, 3), None, 2),
        "upsample_tail: expected out_weight of shape [K, 1, 3, 3], got [3, 2, 3, 3]",
    ),
    (
        lambda: ops_native.upsample_tail(X.half(), W, B, None, None, rand(3, 1, 3, 3), None, 2),
        "upsample_tail: expected up_weight1 of dtype float32, got float64",
    ),
    (
        lambda: ops_native.upsample_tail_backward(
            rand(2, 3, 10, 11), X, rand(5, 10, 10, 3), *TAIL_WEIGHTS, 2, True, True
        ),
        "upsample_tail_backward: expected grad_output of shape [2, 3, 10, 12], got [2, 3, 10, 11]",
    ),
    (
        lambda: ops_native.upsample_tail_backward(
            rand(2, 3, 10, 12), X, rand(5, 8, 8, 3), *TAIL_WEIGHTS, 2, True, True
        ),
        "upsample_tail_backward: expected composed of shape [5, 10, 10, 3], got [5, 8, 8, 3]",
    ),
    (
        lambda: ops_native.upsample_tail_backward(
            rand(2, 3, 10, 12), X, rand(5, 10, 10, 6)[..., ::2], *TAIL_WEIGHTS, 2, True, True
        ),
        "upsample_tail_backward: expected composed contiguous, got strides [600, 60, 6, 2]",
    ),
    (
        lambda: ops_native.pairwise_similarity(Q, rand(2, 7, 8), "dot"),
        "pairwise_similarity: expected key of shape [2, 7, 9], got [2, 7, 8]",
    ),
    (
        lambda: ops_native.info_nce(Q, rand(2, 6, 9), *NO_OPTIONS, 0.1, "mean", False),
        "info_nce: expected a positive_key for each row of query, got 6 for 7",
    ),
    (
        lambda: ops_native.info_nce(Q, rand(2, 8, 9), Q, *NO_OPTIONS[1:], 0.1, "mean", False),
        "info_nce: expected positive_key of shape [2, 7, 9], got [2, 8, 9]",
    ),
    (
        lambda: ops_native.info_nce(Q, Q, None, MASK[:, :6], None, None, 0.1, "mean", False),
        "info_nce: expected mask of shape [2, 7, 7], got [2, 6, 7]",
    ),
    (
        lambda: ops_native.info_nce(Q, Q, None, MASK.float(), None, None, 0.1, "mean", False),
        "info_nce: expected mask of dtype bool, got float32",
    ),
    (
        lambda: ops_native.info_nce(Q, Q, Q, None, LABELS, None, 0.1, "mean", False),
        "info_nce: expected no labels beside negative_keys, got both",
    ),
    (
        lambda: ops_native.info_nce(Q, Q, None, None, LABELS[:, :6], None, 0.1, "mean", False),
        "info_nce: expected labels of shape [2, 7], got [2, 6]",
    ),
    (
        lambda: ops_native.info_nce(Q, Q, None, None, LABELS.int(), None, 0.1, "mean", False),
        "info_nce: expected labels of dtype int64, got Int",
    ),
    (
        lambda: ops_native.info_nce(Q, Q, None, None, None, torch.tensor(0.1), 1.0, "mean", False),
        "info_nce: expected learned_temperature of dtype float64, got float32",
    ),
    (
        lambda: ops_native.info_nce(Q, Q, *NO_OPTIONS, 0.1, "max", False),
        "info_nce: expected reduction none, mean or sum, got max",
    ),
    (
        lambda: ops_native.info_nce_backward(rand(), rand(3, 2, 6), Q, Q, *NO_OPTIONS, 0.1, "mean"),
        "info_nce_backward: expected statistics of shape [3, 2, 7], got [3, 2, 6]",
    ),
    (
        lambda: ops_native.info_nce_backward(
            rand(2, 7), rand(3, 2, 14)[..., ::2], Q, Q, *NO_OPTIONS, 0.1, "none"
        ),
        "info_nce_backward: expected statistics contiguous, got strides [28, 14, 2]",
    ),
    (
        lambda: ops_native.info_nce_backward(
            rand(2, 7), rand(3, 2, 7), Q, Q, *NO_OPTIONS, 0.1, "sum"
        ),
        "info_nce_backward: expected grad_loss of shape [], got [2, 7]",
    ),
    (
        lambda: ops_native.distance_ratio_loss(Q, Q, rand(2, 0, 9), 0.1),
        "distance_ratio_loss: expected at least 1 row of negatives, got 0",
    ),
]


@pytest.mark.parametrize(
    "call, sentence", BAD_OPERATOR_CALLS, ids=[s for _, s in BAD_OPERATOR_CALLS]
)
def test_native_operators(native, call, sentence):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert str(caught.value) == sentence


MODULES = {
    "EDSR": [lambda value: clsd_fast.EDSR(value), lambda value: clsd_fast.EDSR(2, value),
             lambda value: clsd_fast.EDSR(2, 1, value),
             lambda value: clsd_fast.EDSR(2, 1, 4, res_scale=value),
             lambda value: clsd_fast.EDSR(2, 1, 4, value_range=value),
             lambda value: clsd_fast.EDSR(2, 1, 4)(value)],
    "CLSD": [lambda value: clsd(taps=value), lambda value: clsd(taps=[value]),
             lambda value: clsd(head_blocks=value), lambda value: clsd(ds_weight=value),
             lambda value: clsd(contrast_weight=value), lambda value: clsd(projection_dim=value),
             lambda value: clsd(num_patches=value),
             lambda value: clsd()(rand(2, 3, 4, 4).float(), value)],
    "InfoNCELoss": [lambda value: clsd_fast.losses.InfoNCELoss(loss_weight=value),
                    lambda value: clsd_fast.losses.InfoNCELoss()(value, Q)],
    "patch_nce": [lambda value: clsd_fast.losses.patch_nce(value, X)],
    "feature_ratio": [lambda value: clsd_fast.losses.feature_ratio(X, value)],
    "pos_only": [lambda value: clsd_fast.losses.pos_only(X, value)],
}  # fmt: skip


def clsd(**options):
    return clsd_fast.CLSD(clsd_fast.EDSR(2, 1, 4), **{"taps": (1,), "projection_dim": 4} | options)


@pytest.mark.parametrize("strange", STRANGE)
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_another_type(name, strange):
    for make in MODULES[name]:
        with pytest.raises(ValueError, match=f"^({name}|info_nce): expected .*, got "):
            make(STRANGE[strange])


@pytest.mark.parametrize("value_range", [0, -1.0, float("nan"), float("inf")])
def test_white_of_edsr(value_range):
    with pytest.raises(ValueError, match="^EDSR: expected a finite value_range > 0, got "):
        clsd_fast.EDSR(2, 1, 4, value_range=value_range)


def test_edsr_and_clsd():
    with pytest.raises(ValueError, match=r"EDSR: expected scale in \{2, 3, 4\}, got 5"):
        clsd_fast.EDSR(5)
    with pytest.raises(ValueError, match=r"CLSD: expected taps in 1\.\.16, got 17"):
        clsd_fast.CLSD(clsd_fast.EDSR(2), (5, 17))
