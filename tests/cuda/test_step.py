"""A whole training step of CLSD by the emulated CUDA kernels, from the model to the last launch."""

import json
import os
import subprocess
import sys

import native_build
import pytest
from support import interpreter

PROGRAM = """
import json, sys
import emulation, native_build, torch
from unittest.mock import patch
import clsd_fast
from clsd_fast.backend import has_kernel, triton
from support.steps import assert_step_close, exact_step, step
from support.util import channels_last, rand

channels, capability, dtype, has_triton = json.loads(sys.argv[1])
dtype = getattr(torch, dtype)
torch.manual_seed(0)
student = clsd_fast.EDSR(2, num_blocks=2, channels=channels, collapse=False)
model = clsd_fast.CLSD(student, taps=(1, 2), head_blocks=1).to(memory_format=torch.channels_last)
lr, hr = (channels_last(255 * rand(2, 3, size, size).float()) for size in (8, 16))
loaded = emulation.Emulation(native_build.build_emulation())
calls = []

def call(name, *args, call=triton.call):
    calls.append(name)
    return call(name, *args)

missing = None if has_triton else "left out"
with (
    patch.object(triton, "call", call),
    emulation.as_on_a_gpu(loaded, emulation.Gpu(tuple(capability))),
    patch.object(triton, "missing", missing),
    loaded.recorded() as launches,
):
    ours = step(model, lr, hr, dtype)
    weight = torch.empty(channels, channels, 3, 3)
    images = [torch.empty(1, channels, 4, 4, dtype=of) for of in (dtype, torch.float32)]
    served = [has_kernel("conv3x3s", x, weight.to(x.dtype)) for x in images]
with clsd_fast.use_backend("reference"):
    theirs = step(model, lr, hr, dtype)
    assert_step_close(ours, exact_step(model, lr, hr), theirs, dtype)
# How many convolutions have a launch together.
together = [launch.grid[1] for launch, _ in launches if "conv3x3_kernel" in launch.kernel]
print(json.dumps([
    sorted({launch.kernel.split("<")[0] for launch, _ in launches}), calls, max(together), served
]))
"""

#: Tails are layer by layer: interpreted, Triton's kernels for composed ones take minutes.
COMMON = ["few::conv3x3_from_few_kernel", "few::conv3x3_to_few_kernel", "pack_kernel"]
COMMON += ["sum_kernel", "wgrad::wgrad_reduce_kernel", "wgrad_few::wgrad_few_kernel"]
COMMON += [f"l1::{name}_kernel" for name in ("sum", "reduce", "gradient")]


@pytest.mark.parametrize(
    "channels, capability, dtype, has_triton, architecture",
    [
        (64, (9, 0), "bfloat16", False, "sm90"),
        pytest.param(16, (8, 0), "float16", True, "sm80", marks=pytest.mark.thorough),
    ],
)
def test_step(emulated_library, channels, capability, dtype, has_triton, architecture):
    """Equal to the reference's; in a process whose operators are served as on a GPU."""
    if has_triton and interpreter.MISSING is not None:
        pytest.skip(f"needs Triton's interpreter: {interpreter.MISSING}")
    folders = [str(native_build.ROOT / name) for name in ("tools", "tests")]
    path = os.pathsep.join([*folders, *filter(None, sys.path)])
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([channels, capability, dtype, has_triton])],
        env={**os.environ, "PYTHONPATH": path, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr[-2000:]
    launched, calls, together, served = json.loads(found.stdout.splitlines()[-1])
    kernels = [f"{architecture}::conv3x3_kernel", f"wgrad_{architecture}::wgrad_kernel"]
    assert launched == sorted([*COMMON, *kernels])
    assert together == 3  # the ends of the student and its heads
    assert served == [True, False]  # by the GPU's kernels, of 16 bits, whatever the CPU has
    assert calls == (["info_nce", "info_nce_backward"] if has_triton else [])
