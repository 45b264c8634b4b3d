"""The kernels of every instruction set, not only of the widest one."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import native_build
import pytest
from support.calls import ALGORITHMS, BACKWARDS, FORWARDS, algorithm_calls
from support.util import convolution_algorithm

from clsd_fast._library import SCHEMAS

TESTS = Path(__file__).parents[1]
# What each operator says, one after the other: a lookup that throws is tried again by the next.
CALL_ALL = """
import torch
from support.calls import BACKWARDS, FORWARDS, algorithm_calls
for op, arguments in FORWARDS + BACKWARDS + algorithm_calls():
    try:
        getattr(torch.ops.clsd_fast, op)(*arguments)
        print(op, "no error", sep=": ")
    except RuntimeError as error:
        print(op, str(error).splitlines()[0], sep=": ")
"""


def run(isa, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS,  # not the checkout, whose sources would hide the installation
        env={
            **os.environ,
            "CLSD_FAST_ISA": isa,
            "CLSD_FAST_BACKEND": "native",
            "PYTHONPATH": os.pathsep.join(sys.path),  # of helpers
        },
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def refusals():
    """What the operators say of an unknown instruction set, a line a call."""
    result = run("mmx", "-c", CALL_ALL)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    "marked", ["not thorough", pytest.param("thorough", marks=pytest.mark.thorough)]
)
@pytest.mark.parametrize("isa", ["avx2", "portable"])
def test_narrower_instruction_sets(native, refusals, isa, marked):
    """Than the widest one, which all other tests run."""
    widest, *narrower = refusals[0].partition("expected one of ")[2].split(", ")
    if isa not in narrower:
        pytest.skip(f"needs a processor with more than {isa}, got {widest}")
    files = ("residual_block", "upsample_tail", "pairwise_similarity", "info_nce")
    files += ("distance_ratio_loss",)
    # info_nce's grid up to 64 rows: the larger ones take minutes on the portable kernels.
    selection = "native and (layouts or gradcheck or sizes) and not 1000 and not reduced"
    suite = [f"ops/test_{name}.py" for name in files]
    options = ["-q", "-p", "no:cacheprovider", "-m", marked, "-k", selection]
    result = run(isa, "-m", "pytest", *options, *suite)
    assert result.returncode == 0, result.stdout
    assert " passed" in result.stdout and "skipped" not in result.stdout


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_calls_cover_every_algorithm_of_a_convolution(native, algorithm):
    assert convolution_algorithm(*ALGORITHMS[algorithm]) == algorithm


def test_every_operator_refuses_an_unknown_instruction_set(native, refusals):
    calls = FORWARDS + BACKWARDS + algorithm_calls()
    assert {op for op, _ in calls} == set(SCHEMAS)
    assert len(refusals) == len(calls)
    sentence = re.compile(r"\w+: CLSD_FAST_ISA: expected one of (\w+, )*portable, got 'mmx'")
    served_by_the_reference = {"l1_losses: no error", "l1_losses_backward: no error"}
    assert {line for line in refusals if not sentence.fullmatch(line)} == served_by_the_reference


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_instruction_sets_share_no_function(isa):
    """Of functions that objects share the linker keeps one, which not every processor may have."""
    lacking = [native_build.missing(), None if shutil.which("nm") else "nm"]
    if platform.machine() not in ("x86_64", "AMD64"):
        lacking.append("an x86 processor to build for")
    if lacking := ", ".join(filter(None, lacking)):
        pytest.skip(f"needs {lacking}")
    # Where nothing is inlined, every inline function that is called has a symbol.
    target = f"isa_{isa}"
    folder = native_build.build(target, target, CXXFLAGS="-fno-inline").parent
    (built,) = folder.glob(f"CMakeFiles/{target}.dir/**/*.o")
    symbols = ["nm", "--defined-only", "--extern-only", "--demangle", "--format=posix", built]
    listed = subprocess.run(symbols, capture_output=True, text=True, check=True).stdout
    tables = {f"clsd::cpu::{isa}::k{number}Kernels" for number in ("Float", "Double")}
    assert {line.split(" D ")[0] for line in listed.splitlines()} == tables
