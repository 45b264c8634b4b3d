"""What the processes of the distributed tests run: importable, so that they can be started."""

import os
import re

import pytest
import torch
import torch.distributed as dist

import clsd_fast
from clsd_fast import info_nce
from support.util import rand

ROWS, FEATURES = 5, 8


def make_case(name, ranks):
    """All ranks' tensors [heads, ranks, ROWS, FEATURES] and options with a dimension of ranks."""
    tensors = [rand(2, ranks, ROWS, FEATURES, seed=seed) for seed in range(2)]
    if "negatives" in name:
        tensors.append(rand(2, ranks, 3, FEATURES, seed=2))
    options = {}
    if "mask" in name:
        keys = ranks * (3 if "negatives" in name else ROWS)
        options["mask"] = rand(2, ranks, ROWS, keys, seed=3) > 0.5
    if "labels" in name:
        options["labels"] = torch.arange(2 * ranks * ROWS).reshape(2, ranks, ROWS) % 4
    return tensors, options


CASES = ("in batch", "negatives", "mask", "labels", "mask and labels", "negatives, mask")


def expected(name, ranks, temperature):
    """Loss of the concatenated batch, and its gradients per rank."""
    tensors, options = make_case(name, ranks)
    leaves = [t.requires_grad_() for t in tensors]
    temperature = temperature.clone().requires_grad_()
    options = {key: value.flatten(1, 2) for key, value in options.items()}
    loss = info_nce(*(t.flatten(1, 2) for t in leaves), temperature=temperature, **options)
    return loss.detach(), *torch.autograd.grad(loss, [*leaves, temperature])


def equal_concatenated_batch(rank, ranks, group, backend):
    temperature = torch.tensor(0.3, dtype=torch.float64)
    with clsd_fast.use_backend(backend):
        for name in CASES:
            loss, *grads, grad_temperature = expected(name, ranks, temperature)
            tensors, options = make_case(name, ranks)
            leaves = [t[:, rank].clone().requires_grad_() for t in tensors]
            leaf = temperature.clone().requires_grad_()
            options = {key: value[:, rank] for key, value in options.items()}
            ours = info_nce(*leaves, temperature=leaf, group=group, **options)
            # Of the mean over the ranks, which is what data-parallel training minimises.
            *ours_grads, ours_grad_temperature = torch.autograd.grad(ours / ranks, [*leaves, leaf])
            for value in (ours, ours_grad_temperature):
                dist.all_reduce(value.detach(), group=group)
            torch.testing.assert_close(ours.detach() / ranks, loss, msg=f"{name}: loss")
            torch.testing.assert_close(ours_grad_temperature, grad_temperature)
            for a, b in zip(ours_grads, grads, strict=True):
                torch.testing.assert_close(a, b[:, rank], msg=f"{name}: gradient")


def refuse_uneven(rank, ranks, group, backend):
    uneven = rand(ROWS + rank, FEATURES)
    even, mask = rand(ROWS, FEATURES), torch.ones(ROWS, ROWS, dtype=torch.bool)
    with clsd_fast.use_backend(backend):
        expected = (
            "info_nce: expected rows of the same shape on every rank of group, got [5, 8], [6, 8]"
        )
        with pytest.raises(ValueError, match=re.escape(expected)):
            info_nce(uneven, uneven, group=group)
        expected = f"info_nce: expected mask of shape [..., 5, {5 * ranks}], got [5, 5]"
        with pytest.raises(ValueError, match=re.escape(expected)):
            info_nce(even, even, group=group, mask=mask)


#: What is checked of which ranks: the group need not be all of them.
CHECKS = [
    (check, members)
    for check in (equal_concatenated_batch, refuse_uneven)
    for members in ([0, 1], [0, 1, 2], [1, 2])
]


def worker(rank, ranks, store, backend):
    """One rank of all checks: a process takes seconds to start."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for check, members in CHECKS:
        group = dist.group.WORLD if len(members) == ranks else dist.new_group(members)
        if rank in members:
            check(members.index(rank), len(members), group, backend)
        dist.barrier()
    dist.destroy_process_group()
    # PyTorch's threads abort some one in twenty of the processes when the interpreter ends.
    os._exit(0)
