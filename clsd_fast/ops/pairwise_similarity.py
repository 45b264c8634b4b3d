"""Similarity of every row to every key."""

import torch
from torch import Tensor

from .. import reference
from .._library import register
from ..backend import uses_kernel
from . import _checks

METRICS = ("cosine", "dot", "l1")


def pairwise_similarity(query: Tensor, key: Tensor, metric: str = "cosine") -> Tensor:
    """Similarity (or L1 distance) of each query row to each key row.

    Equivalent to::

        F.normalize(query, dim=-1) @ F.normalize(key, dim=-1).mT    # metric="cosine"
        query @ key.mT                                              # metric="dot"
        (query.unsqueeze(-2) - key.unsqueeze(-3)).abs().sum(-1)     # metric="l1"

    Args:
        query: rows [..., N, D]; float32, float64, bfloat16 or float16.
        key: rows [..., M, D], of query's dtype and device; leading dimensions broadcast.
        metric: ``"cosine"``, ``"dot"`` or ``"l1"`` (the sum of absolute differences).

    Returns:
        [..., N, M] in query's dtype.

    Raises:
        ValueError: if a shape, dtype, device or the metric does not fit.
        RuntimeError: if the chosen backend cannot serve the tensors' device.

    A row whose norm is below 1e-12 has cosine similarity 0 and gradient 0. The gradient of
    ``l1`` where two elements are equal is 0. Under autocast the inputs are cast to float32.
    Saved for backward: query and key.
    """
    op = "pairwise_similarity"
    _checks.check_choice(op, "metric", metric, METRICS)
    query, key = _checks.cast(query, key, dtype=torch.float32)
    _checks.check_tensor(op, "query", query)
    _checks.check_tensor(op, "key", key)
    _checks.check_rows(op, "query", query)
    _checks.check_rows(op, "key", key, query.shape[-1])
    _checks.check_like(op, query, key=key)
    lead = _checks.broadcast_lead(op, query=query, key=key)
    if uses_kernel(op, query):
        rows = _checks.batch_rows(lead, query), _checks.batch_rows(lead, key)
        table = _pairwise_similarity(*rows, metric)
        return table.reshape(*lead, query.shape[-2], key.shape[-2])
    with _checks.without_autocast(query):
        return reference.pairwise_similarity(query, key, metric)


def _fake(query, key, metric):
    return query.new_empty(query.shape[0], query.shape[1], key.shape[1])


def _fake_backward(grad_output, query, key, metric):
    return query.new_empty(query.shape), key.new_empty(key.shape)


def _setup_context(ctx, inputs, output):
    query, key, ctx.metric = inputs
    ctx.save_for_backward(query, key)


def _backward(ctx, grad_output):
    grads = _pairwise_similarity_backward(grad_output, *ctx.saved_tensors, ctx.metric)
    return *_checks.given(grads, ctx.needs_input_grad[:2]), None


_pairwise_similarity = register(
    "pairwise_similarity",
    reference=reference.pairwise_similarity,
    fake=_fake,
    backward=_backward,
    setup_context=_setup_context,
)
_pairwise_similarity_backward = register(
    "pairwise_similarity_backward",
    reference=reference.pairwise_similarity_backward,
    fake=_fake_backward,
)
