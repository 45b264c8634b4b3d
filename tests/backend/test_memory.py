"""What is said where there is no memory."""

import json
import os
import re
import subprocess
import sys

import pytest

#: Bytes that a call may have beside what the process has.
LIMIT = 150 << 20
SENTENCE = re.compile(
    r"can't allocate memory: you tried to allocate (\d+) bytes\b.*\bfor (?:a )?(\w+)"
)
PROGRAM = """
import json, resource
import torch, clsd_fast
torch.set_num_threads(1)
conv3x3, block = clsd_fast.conv3x3, clsd_fast.residual_block
similarity = clsd_fast.pairwise_similarity
CALLS = {{
    # a result, of 512 MiB
    "tensor": lambda: conv3x3(torch.ones(1, 1, 1024, 1024), torch.ones(128, 1, 3, 3)),
    # a hidden map of 512 MiB
    "scratch": lambda: block(
        torch.ones(1, 1, 1024, 1024), torch.ones(128, 1, 3, 3), None, torch.ones(1, 128, 3, 3), None
    ),
    # in a task of a thread: ten rows, where the result has one
    "task": lambda: conv3x3(torch.ones(1, 5, 1, 1 << 20), torch.ones(1, 5, 3, 3)),
}}
rows, keys = torch.ones(5000, 1, requires_grad=True), torch.ones(5000, 1)
table = similarity(rows, keys, "l1")
# 5000 times 5000 gradients in float64
CALLS["table"] = lambda: torch.autograd.grad(table.sum(), rows)
conv3x3(torch.ones(1, 5, 8, 8), torch.ones(5, 5, 3, 3))
before = resource.getrlimit(resource.RLIMIT_AS)
said = {{}}
for name, call in CALLS.items():
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + {limit}, before[1]))
    try:
        call()
    except RuntimeError as error:
        said[name] = str(error).replace(chr(10), " ")
    resource.setrlimit(resource.RLIMIT_AS, before)
print(json.dumps(said))
"""


#: What lacks memory by which call of the program, and at least how many bytes of it.
EXPECTED = {
    "tensor": ("tensor", 512 << 20),
    "scratch": ("scratch", 512 << 20),
    "task": ("scratch", 200 << 20),
    "table": ("table", 190 << 20),
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of memory")
def test_the_sentence_says_how_much(native, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(limit=LIMIT)],
        cwd=tmp_path,  # not the checkout, whose sources would hide the installation
        env={**os.environ, "CLSD_FAST_BACKEND": "native", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said.keys() == EXPECTED.keys()
    for name, (what, least) in EXPECTED.items():
        found = SENTENCE.search(said[name])
        assert found and int(found[1]) >= least and found[2] == what, said[name]
