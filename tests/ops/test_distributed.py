"""info_nce over the ranks of a process group against the loss of the concatenated batch."""

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from support import ranks

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo in this PyTorch"
)


def run(function, count, tmp_path, backend="auto", members=None):
    members = list(range(count)) if members is None else members
    arguments = (count, members, tmp_path / "store", backend, function)
    mp.spawn(ranks.worker, arguments, nprocs=count)


@pytest.mark.parametrize("count", [2, 3])
def test_equals_the_concatenated_batch(backend, tmp_path, count):
    run(ranks.equal_concatenated_batch, count, tmp_path, backend)


def test_group_of_some_ranks(tmp_path):
    run(ranks.equal_concatenated_batch, 3, tmp_path, members=[1, 2])


@pytest.mark.parametrize("count", [2, 3])
def test_uneven_batches_are_refused(tmp_path, count):
    run(ranks.refuse_uneven, count, tmp_path)
