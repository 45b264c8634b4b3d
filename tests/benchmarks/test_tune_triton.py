"""benchmarks/tune_triton.py without a GPU: what it tries, and the table that it writes."""

import importlib.util

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

import torch
import tune_triton as program

from clsd_fast.triton.conv import table


def test_the_table_is_as_the_program_writes_it():
    with open(table.__file__) as source:
        assert source.read() == program.rendered()


def test_the_fastest_that_runs_is_chosen(monkeypatch, capsys):
    """Wrong results and failures are left out."""
    tables = {name: {key: dict(of) for key, of in t.items()} for name, t in program.TABLES.items()}
    monkeypatch.setattr(program, "TABLES", tables)
    monkeypatch.setattr(program.configurations, "architecture", lambda device: "sm_00")
    fails, is_wrong, is_best = 1, 2, 3
    stages = {}

    def problem(name, arithmetic):
        tried = list(program.candidates(arithmetic))
        stages.update({tried[7]: fails, tried[8]: is_wrong, tried[9]: is_best})

        def call():
            sizes = tables[name]["sm_00"][arithmetic]
            call.last = stages.get(sizes)
            if call.last == fails:
                raise RuntimeError("out of resource: shared memory\nand more")
            return torch.tensor([9.0 if call.last == is_wrong else 1.0])

        return call

    def milliseconds(call, seconds):
        return 1.0 if call.last == is_best else 2.0

    monkeypatch.setattr(program, "problem", problem)
    monkeypatch.setattr(program, "milliseconds", milliseconds)
    before = torch.get_float32_matmul_precision()
    try:
        program.tune(0.0)
    finally:
        torch.set_float32_matmul_precision(before)
    for entries in tables.values():
        assert set(entries) == {"others", "sm_90", "sm_00"}
        for arithmetic in program.BLOCKS:
            best = list(program.candidates(arithmetic))[9]
            assert entries["sm_00"][arithmetic] == best
            assert f'"{arithmetic}": {best},' in program.rendered()
        assert entries["sm_00"]["float64"] == entries["others"]["float64"]
    printed = capsys.readouterr().out
    assert printed.count("left out: out of resource: shared memory\n") == 6
    assert printed.count("left out: a relative error of 8\n") == 6
