"""info_nce over the ranks of a process group against the loss of the concatenated batch."""

import multiprocessing

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from support import ranks
from support.grids import NATIVE_FIRST

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="no gloo in this PyTorch"
)


@NATIVE_FIRST
def test_equals_the_concatenated_batch_and_refuses_uneven_ones(backend, tmp_path):
    """Of groups of two and of three ranks, and of some ranks alone."""
    # Processes that are forked from one that has imported PyTorch, instead of each importing it.
    multiprocessing.set_forkserver_preload(["torch"])
    mp.start_processes(
        ranks.worker, (3, tmp_path / "store", backend), nprocs=3, start_method="forkserver"
    )
