"""Training steps; `step.py` times the same cases."""

from concurrent.futures.process import BrokenProcessPool

import pytest
from cases import contest, step

SUBJECT = step


def test_step(rivals, name, compete):
    if name not in step.COMPILED:
        compete(rivals.contender(name))
        return
    # On some processors torch.compile of the step corrupts memory (docs/cpu.md).
    with contest.in_own_process(step.contender, rivals.case, name) as contender:
        try:
            compete(contender)
        except BrokenProcessPool:
            pytest.skip("torch.compile: the process of the compiled step crashed")
