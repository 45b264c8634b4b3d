"""What the ranks of the test of DistributedDataParallel run: importable, so that they start."""

import copy
import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from zoo import ZOO

import clsd_fast
from support import students
from support.util import rand

NAMES = ("EDSR", "RCAN", "CARN", "RFDN")


def gradients(model, x):
    model(x).square().sum().backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def step_gradients(model, batch):
    model(*batch).losses["total"].backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def check_a_student(rank, ranks):
    """Each rank's gradients of a CLSD step are the mean of all ranks'."""
    batches = [[x + i / 10 for x in students.batch()] for i in range(ranks)]
    model = DistributedDataParallel(students.make("RCAN").double())
    found = step_gradients(model, batches[rank])
    each = [step_gradients(students.make("RCAN").double(), batch) for batch in batches]
    torch.testing.assert_close(found, [sum(grads) / ranks for grads in zip(*each, strict=True)])


def worker(rank, ranks, store):
    """Each rank's gradients are the mean of those that the ranks' images have in plain PyTorch."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    for name in NAMES:
        torch.manual_seed(0)
        plain = ZOO[name]().double()
        images = rand(ranks, 2, 3, 9, 8)
        model = DistributedDataParallel(clsd_fast.accelerate(copy.deepcopy(plain)))
        found = gradients(model, images[rank])
        summed = gradients(plain, images.flatten(0, 1))
        torch.testing.assert_close(found, [grad / ranks for grad in summed])
    check_a_student(rank, ranks)
    dist.destroy_process_group()
    # PyTorch's threads abort some one in twenty of the processes when the interpreter ends.
    os._exit(0)
