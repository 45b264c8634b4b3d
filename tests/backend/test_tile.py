"""The register tile of every instruction set, not only of the widest one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PROBE = """
import torch, clsd_fast
clsd_fast.conv3x3(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 3))
"""


def run(isa, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS,  # not the checkout, whose sources would hide the installation
        env={**os.environ, "CLSD_FAST_ISA": isa, "CLSD_FAST_BACKEND": "native"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_narrower_instruction_sets(native, isa):
    if "expected one of" in run(isa, "-c", PROBE).stderr:
        pytest.skip(f"needs a processor with {isa}")
    files = ("residual_block", "upsample_tail", "pairwise_similarity", "info_nce")
    files += ("distance_ratio_loss",)
    # info_nce's grid up to 64 rows: the larger ones take minutes on the portable tile.
    selection = "native and (layouts or gradcheck or sizes) and not 1000 and not reduced"
    suite = [f"ops/test_{name}.py" for name in files]
    result = run(isa, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", selection, *suite)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and "skipped" not in result.stdout


def test_unknown_instruction_set_is_refused(native):
    result = run("mmx", "-c", PROBE)
    assert result.returncode != 0
    assert "CLSD_FAST_ISA: expected one of " in result.stderr
    assert "portable, got 'mmx'" in result.stderr
