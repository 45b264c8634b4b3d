"""The contrastive operators in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

#: Rows with a smaller Euclidean norm count as zero: similarity 0, gradient 0.
NORM_EPS = 1e-12


def accumulated(statistic: Tensor) -> Tensor:
    """A statistic in the dtype that is saved for backward: float32 instead of 16 bits."""
    return statistic.float() if statistic.element_size() == 2 else statistic.clone()


def normalize(rows: Tensor) -> Tensor:
    """rows / ||rows||, with 0 (and gradient 0) for a row that is shorter than NORM_EPS."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    is_zero = norm <= NORM_EPS
    return torch.where(is_zero, 0.0, rows / torch.where(is_zero, 1.0, norm))


def pairwise_similarity(query: Tensor, key: Tensor, metric: str) -> Tensor:
    if metric == "l1":
        return (query.unsqueeze(-2) - key.unsqueeze(-3)).abs().sum(dim=-1)
    if metric == "cosine":
        query, key = normalize(query), normalize(key)
    return query @ key.mT


def info_nce(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    learned_temperature: Tensor | None,
    temperature: float,
    reduction: str,
    save_gradients: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its statistics or its gradients, as in ``SCHEMAS``."""
    options = (query, positive_key, negative_keys, mask, labels, learned_temperature, temperature)
    losses, *saved = info_nce_rows(*options)
    statistics = accumulated(torch.stack(saved))
    loss = reduce(losses, reduction)
    if not save_gradients:
        return loss, [statistics]
    return loss, info_nce_backward(torch.ones_like(loss), statistics, *options, reduction)


def info_nce_rows(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    learned_temperature: Tensor | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss of each row, [..., N], and its largest logit, sum of exp(logit - largest) and spread.

    The spread is the mean logit under the softmax less the positive's: the gradient of the loss
    with respect to the temperature is -spread / temperature.
    """
    divisor = temperature if learned_temperature is None else learned_temperature
    positive, logits = _info_nce_logits(query, positive_key, negative_keys, mask, labels, divisor)
    if logits.shape[-1] == 0:  # no rows: nothing to take a maximum of
        return positive, positive.detach(), positive.detach(), positive.detach()
    maximum = logits.detach().amax(dim=-1)
    shifted = logits - maximum.unsqueeze(-1)
    sum_exp = shifted.exp().sum(dim=-1)
    # Not log-sum-exp minus logit: both can be 1e4, and their difference 0.
    loss = sum_exp.log() - (positive - maximum)
    with torch.no_grad():
        excluded = shifted == -torch.inf  # where exp is 0, and 0 * inf would be nan
        terms = torch.where(excluded, 0.0, shifted.exp() * shifted)
        spread = terms.sum(dim=-1) / sum_exp - (positive - maximum)
    return loss, maximum, sum_exp.detach(), spread


def reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


def _info_nce_logits(
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    temperature: float | Tensor,
) -> tuple[Tensor, Tensor]:
    """The positive's logit of each row, [..., N], and all its logits, [..., N, P or 1 + M].

    Logits of excluded pairs are -inf.
    """
    if negative_keys is None:
        logits = pairwise_similarity(query, positive_key, "cosine") / temperature
        positive = logits.diagonal(dim1=-2, dim2=-1)
    else:
        positive = (normalize(query) * normalize(positive_key)).sum(dim=-1) / temperature
        logits = pairwise_similarity(query, negative_keys, "cosine") / temperature
    excluded = mask
    if labels is not None:
        same = labels[..., : query.shape[-2], None] == labels[..., None, :]
        excluded = same if mask is None else mask | same
    if excluded is not None:
        if negative_keys is None:
            excluded = excluded & ~torch.eye(
                *logits.shape[-2:], dtype=torch.bool, device=query.device
            )
        logits = torch.where(excluded, -torch.inf, logits)
    if negative_keys is None:
        return positive, logits
    positive = positive.expand(logits.shape[:-1])
    return positive, torch.cat([positive.unsqueeze(-1), logits], dim=-1)


def distance_ratio_loss(
    anchor: Tensor, positive: Tensor, negatives: Tensor | None, eps: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, distance to the positive and mean distance to the negatives, [..., N] each."""
    features = anchor.shape[-1]
    if negatives is None:
        table = pairwise_similarity(anchor, positive, "l1") / features
        to_positive = table.diagonal(dim1=-2, dim2=-1)
        others = ~torch.eye(anchor.shape[-2], dtype=torch.bool, device=anchor.device)
        to_negatives = (table * others).sum(dim=-1) / (anchor.shape[-2] - 1)
    else:
        to_positive = (anchor - positive).abs().mean(dim=-1)
        to_negatives = pairwise_similarity(anchor, negatives, "l1").mean(dim=-1) / features
    loss = to_positive / (to_negatives + eps)
    return loss, accumulated(to_positive), accumulated(to_negatives)


def _normalize_backward(grad: Tensor, rows: Tensor) -> Tensor:
    """Gradient of `normalize` at rows: (grad - unit (unit . grad)) / ||rows||."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    is_zero = norm <= NORM_EPS
    inverse = torch.where(is_zero, 0.0, 1.0 / torch.where(is_zero, 1.0, norm))
    unit = rows * inverse
    return (grad - unit * (unit * grad).sum(dim=-1, keepdim=True)) * inverse


def pairwise_similarity_backward(
    grad_output: Tensor, query: Tensor, key: Tensor, metric: str
) -> tuple[Tensor, Tensor]:
    if metric == "l1":
        signed = grad_output.unsqueeze(-1) * (query.unsqueeze(-2) - key.unsqueeze(-3)).sign()
        return signed.sum(dim=-2), -signed.sum(dim=-3)
    if metric == "dot":
        return grad_output @ key, grad_output.mT @ query
    return (
        _normalize_backward(grad_output @ normalize(key), query),
        _normalize_backward(grad_output.mT @ normalize(query), key),
    )


def info_nce_backward(
    grad_loss: Tensor,
    statistics: Tensor,
    query: Tensor,
    positive_key: Tensor,
    negative_keys: Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    learned_temperature: Tensor | None,
    temperature: float,
    reduction: str,
) -> list[Tensor]:
    maximum, sum_exp, spread = statistics
    grad_loss = grad_loss.expand_as(maximum)
    if reduction == "mean":
        grad_loss = grad_loss / grad_loss.numel()
    divisor = temperature if learned_temperature is None else learned_temperature
    grad_temperature = []
    if learned_temperature is not None:
        grad = -(grad_loss * spread).sum().to(learned_temperature.dtype)
        grad_temperature = [grad / learned_temperature]
    _, logits = _info_nce_logits(query, positive_key, negative_keys, mask, labels, divisor)
    scale = (grad_loss / sum_exp).to(query.dtype).unsqueeze(-1)
    grad_logits = (logits - maximum.to(query.dtype).unsqueeze(-1)).exp() * scale
    # 0 for excluded pairs of any gradient, which may be a NaN.
    grad_logits = torch.where(logits == -torch.inf, 0.0, grad_logits)
    if negative_keys is None:
        keys = positive_key.shape[-2]
        own = torch.diag_embed(grad_loss)
        grad_logits = grad_logits - F.pad(own, (0, keys - own.shape[-1]))
        grad_logits = (grad_logits / divisor).to(query.dtype)
        grads = pairwise_similarity_backward(grad_logits, query, positive_key, "cosine")
        return [*grads, *grad_temperature]
    grad_logits = (grad_logits / divisor).to(query.dtype)
    grad_positive = grad_logits[..., :1] - (grad_loss / divisor).to(query.dtype).unsqueeze(-1)
    grad_query, grad_negatives = pairwise_similarity_backward(
        grad_logits[..., 1:], query, negative_keys, "cosine"
    )
    grad_query = grad_query + _normalize_backward(grad_positive * normalize(positive_key), query)
    grad_key = _normalize_backward(grad_positive * normalize(query), positive_key)
    return [grad_query, grad_key, grad_negatives, *grad_temperature]


def distance_ratio_loss_backward(
    grad_loss: Tensor,
    positive_distance: Tensor,
    negative_distance: Tensor,
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows, features = anchor.shape[-2:]
    to_positive = grad_loss / (negative_distance + eps) / features
    to_negatives = (-to_positive * positive_distance / (negative_distance + eps)).to(anchor.dtype)
    to_positive = to_positive.to(anchor.dtype)
    if negatives is None:
        share = (to_negatives / (rows - 1)).unsqueeze(-1)
        own = torch.eye(rows, dtype=torch.bool, device=anchor.device)
        table = torch.where(own, to_positive.unsqueeze(-1), share)
        return *pairwise_similarity_backward(table, anchor, positive, "l1"), anchor.new_empty(0)
    share = (to_negatives / negatives.shape[-2]).unsqueeze(-1)
    table = share.expand(*to_negatives.shape, negatives.shape[-2])
    grad_anchor, grad_negatives = pairwise_similarity_backward(table, anchor, negatives, "l1")
    grad_positive = to_positive.unsqueeze(-1) * (anchor - positive).sign()
    return grad_anchor + grad_positive, -grad_positive, grad_negatives
