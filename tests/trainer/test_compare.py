import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
import types
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from support.trainer_util import contents, refused, wait_for, write_images

from clsd_train import compare as compare_module
from clsd_train import study as study_module
from clsd_train.cell import train_cell
from clsd_train.cli import main
from clsd_train.compare import compare, record_path
from clsd_train.config import Config
from clsd_train.errors import UserError
from clsd_train.interrupt import Interrupted, RaiseOnSignal
from clsd_train.study import load_study, make_cells, names
from clsd_train.tables import Value

TINY = ("model.num_blocks=2", "model.channels=8", "heads.taps=[1,2]", "heads.blocks=1",
        "heads.projection_dim=8", "data.patch_size=8", "train.batch_size=2", "train.iterations=4",
        "train.eval_every=4", "train.log_every=1", "train.threads=1",
        "teacher.depths=[0.5,1]")  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def light_processes():
    """Without the program that is running: each process would import all of pytest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def settings(folder):
    """Of a study on tiny images, in seconds."""
    hr = write_images(folder / "hr", a=(40, 48), b=(36, 32))
    return (*TINY, f"data.train={hr}", f"data.cache={folder / 'cache'}")


def tables(output: Path) -> tuple[str, list[dict[str, str]], dict]:
    """The study's table as Markdown, CSV and JSON."""
    rows = list(csv.DictReader(io.StringIO((output / "table.csv").read_text())))
    results = json.loads((output / "results.json").read_text())
    return (output / "table.md").read_text(), rows, results


@contextmanager
def one_process():
    """Cells run in this one, of whole studies: each process of their own takes seconds to start."""

    def run(cell, sets):
        train_cell(compare_module._settle(cell), cell.backend, sets, record_path(cell))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_module, "_run_apart", run)
        yield


@pytest.fixture(scope="module")
def table5(folder, settings):
    output = folder / "table5"
    sets = f"sets.noise={folder / 'hr'}"
    with one_process():
        main(["compare", "table5", "--quick", "--output", str(output), *settings, sets])
    return output


def test_table5_runs_whole(table5):
    text, rows, results = tables(table5)
    assert [row["variant"] for row in rows] == ["baseline", "cl", "ds", "clsd",
                                                "baseline-same-time"]  # fmt: skip
    assert all(row["seeds"] == "0 1" for row in rows)
    assert len(results["cells"]) == 10
    for row in rows:
        own = [c for c in results["cells"] if c["variant"] == row["variant"]]
        scores = [c["scores"]["noise"]["psnr"] for c in own]
        assert float(row["noise_psnr"]) == pytest.approx(sum(scores) / 2)
        assert float(row["noise_psnr_spread"]) == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
        assert f"{float(row['noise_psnr']):.3f} ± {float(row['noise_psnr_spread']):.3f}" in text
        for name in ("milliseconds", "hours", "peak_bytes", "parameters"):
            assert float(row[name]) >= 0, name
    plain, clsd = rows[0], rows[3]
    assert float(clsd["noise_gain"]) == pytest.approx(
        float(clsd["noise_psnr"]) - float(plain["noise_psnr"])
    )
    assert float(clsd["slowdown"]) == pytest.approx(
        float(clsd["milliseconds"]) / float(plain["milliseconds"])
    )
    assert "| bicubic |" in text
    for name in ("curves.png", "cost.png", "pictures.png"):
        assert f"]({name})" in text
        with Image.open(table5 / name) as image:
            assert min(image.size) > 100


def test_equal_time_is_measured(table5):
    _, _, results = tables(table5)
    cells = {cell["name"]: cell for cell in results["cells"]}
    for seed in (0, 1):
        plain, clsd, timed = (
            cells[f"{name}_seed-{seed}"] for name in ("baseline", "clsd", "baseline-same-time")
        )
        expected = max(round(4 * clsd["milliseconds"] / plain["milliseconds"]), 1)
        assert timed["settings"]["train"]["iterations"] == expected
        history = (table5 / "cells" / timed["name"] / "history.jsonl").read_text().splitlines()
        assert json.loads(history[-1])["iteration"] == expected


def test_what_has_finished_is_kept(table5, folder, settings, capfd):
    before = {path: path.stat().st_mtime_ns for path in (table5 / "cells").rglob("*")}
    removed = table5 / "cells" / "ds_seed-1.json"
    content = json.loads(removed.read_text())
    removed.unlink()
    sets = f"sets.noise={folder / 'hr'}"
    main(["compare", "table5", "--quick", "--output", str(table5), *settings, sets])
    told = [line for line in capfd.readouterr().err.splitlines() if "cell " in line]
    assert told == ["clsd: compare: cell 6 of 10: ds_seed-1"]
    assert json.loads(removed.read_text())["scores"] == content["scores"]
    changed = {path for path, then in before.items() if path.stat().st_mtime_ns != then}
    # Its run had finished, too, and opens its log.
    assert all("ds_seed-1" in str(path) for path in changed - {table5 / "cells"})


def test_other_settings_are_refused(table5, folder, settings, capsys):
    sets = f"sets.noise={folder / 'hr'}"
    arguments = ("compare", "table5", "--quick", "--output", table5, *settings, sets)
    line = refused(capsys, table5, *arguments, "train.batch_size=1")
    assert "expected train.batch_size=2 as in" in line and "got 1 (another --output" in line


@pytest.mark.thorough
def test_table6_runs_whole(folder, settings):
    output = folder / "table6"
    sizes = ("train.iterations=3", "variants.teacher={method: baseline, settings: {model: "
             "{num_blocks: 3, channels: 12}}}")  # fmt: skip
    with one_process():
        main(["compare", "table6", "--quick", "--output", str(output), *settings, *sizes])
    text, rows, results = tables(output)
    assert "held-out" not in text  # of cost, not of quality
    variants = ["baseline", "teacher", "fakd", "lfd", "ds", "clsd"]
    assert [(row["backend"], row["variant"]) for row in rows] == [
        (backend, variant) for backend in ("auto", "reference") for variant in variants
    ]
    by_name = {(row["backend"], row["variant"]): row for row in rows}
    for (backend, variant), row in by_name.items():
        assert float(row["hours"]) == pytest.approx(float(row["milliseconds"]) * 300_000 / 3.6e6)
        teacher = float(by_name[backend, "teacher"]["hours"])
        if variant in ("fakd", "lfd"):
            total = float(row["hours"]) + teacher
            assert float(row["hours_with_teacher"]) == pytest.approx(total)
        else:
            assert row["hours_with_teacher"] == ""
    backends = {c["name"]: c["machine"]["backend"] for c in results["cells"]}
    assert backends["clsd_backend-reference_seed-0"] == "reference"
    assert backends["clsd_backend-auto_seed-0"] != "reference"
    assert "`lfd` is reconstructed" in text and "hours of 300,000" in text


def write_study(folder: Path, **values) -> Path:
    content = {
        "title": "Small",
        "baseline": "plain",
        "variants": {"plain": {"method": "baseline"}},
        **values,
    }
    path = folder / "study.yaml"
    path.write_text(json.dumps(content))  # which is YAML
    return path


def test_a_failing_cell_is_named_and_others_go_on(tmp_path, settings, capfd):
    path = write_study(tmp_path, variants={
        "broken": {"method": "fakd", "settings": {"teacher": {"checkpoint": "nowhere"}}},
        "taught": {"method": "lfd", "teacher": "broken"},
        "plain": {"method": "baseline"},
    })  # fmt: skip
    arguments = ["compare", str(path), "--output", str(tmp_path / "out"), *settings]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith(
        "clsd: compare: expected 3 finished cells, got failures in broken_seed-0:"
    )
    assert "nowhere: no such file; taught_seed-0: needs broken_seed-0" in line
    _, rows, _ = tables(tmp_path / "out")
    assert [row["variant"] for row in rows] == ["plain"]
    with pytest.raises(SystemExit):
        main([*arguments, "--stop"])
    *_, line = capfd.readouterr().err.splitlines()
    assert "broken_seed-0" in line and "taught" not in line


def test_an_interrupted_study_goes_on(tmp_path, settings):
    path = write_study(tmp_path, variants={"plain": {"method": "baseline"}})
    study = load_study(str(path), overrides=[*settings, "train.iterations=100000"])
    history = tmp_path / "out" / "cells" / "plain_seed-0" / "history.jsonl"

    def interrupt():
        try:
            wait_for(lambda: history.exists() and history.read_text().count("\n") > 3)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with RaiseOnSignal(), pytest.raises(Interrupted, match="goes on with plain_seed-0") as caught:
        compare(study, tmp_path / "out")
    thread.join()
    assert caught.value.signum == signal.SIGTERM
    assert (history.parent / "state.pt").exists()
    assert not (tmp_path / "out" / "lock").exists()
    before = history.read_text().splitlines()
    done = json.loads(before[-1])["iteration"]
    with pytest.raises(UserError, match=r"expected train.iterations=100000 as in"):
        compare(load_study(str(path), overrides=settings), tmp_path / "out")
    record = history.parent / "config.yaml"
    record.write_text(record.read_text().replace("100000", str(done + 1)))
    compare(load_study(str(path), overrides=[*settings, f"train.iterations={done + 1}"]),
            tmp_path / "out")  # fmt: skip
    iterations = [
        entry["iteration"]
        for entry in map(json.loads, history.read_text().splitlines())
        if entry["kind"] == "train"
    ]
    assert iterations == list(range(1, done + 2))


def test_cells_run_what_the_command_runs(tmp_path, settings):
    """And not sources in the current folder, as where it is a checkout."""
    write_study(tmp_path, variants={"plain": {"method": "baseline"}})
    for package in ("clsd_fast", "clsd_train"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("raise SystemExit(__file__)")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "clsd"  # its own folder, not the current one, is in sys.path
    command.write_text("from clsd_train.cli import main\nif __name__ == '__main__': main()\n")
    result = subprocess.run(
        [sys.executable, command, "compare", "study.yaml", "--output", "out", *settings],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "table.md").exists()


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("quick", [True, False])
def test_shipped_studies_make_their_cells(tmp_path, name, quick):
    study = load_study(name, quick, ["data.train=.", "sets.Set5=."])
    cells = make_cells(study, tmp_path)
    assert len({cell.name for cell in cells}) == len(cells)
    seen = set()
    for cell in cells:
        assert {need.name for need in cell.needs} <= seen
        seen.add(cell.name)
        assert cell.config.train.device == ("cpu" if quick else "cuda")
    if not quick and name != "table6":
        for cell in cells:
            if cell.variant == "clsd" and name != "fig3":
                assert cell.config.heads == Config().heads
            assert cell.config.train.iterations == 300_000
    if quick:
        assert {cell.config.train.learning_rate for cell in cells} == {1e-3}  # of the preset


def test_options_that_a_variant_ignores_are_run_once(tmp_path):
    cells = make_cells(load_study("fig3"), tmp_path)
    assert sum(cell.variant == "baseline" for cell in cells) == 3  # seeds
    assert sum(cell.variant == "clsd" for cell in cells) == 3 * 4


def test_paths_name_the_scale(tmp_path):
    sets = ("sets.Set5=/hr", "sets.Set5.lr=/lr/x{scale}")
    study = load_study("table2", overrides=["data.train_lr=/data/X{scale}", *sets])
    for cell in make_cells(study, tmp_path):
        assert cell.config.data.train_lr == (Path(f"/data/X{cell.config.scale}"),)
        assert cell.config.data.val_lr == (Path(f"/lr/x{cell.config.scale}"),)
    assert study_module.sets_of(study, 4)["Set5"].lr == (Path("/lr/x4"),)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"baseline": "other"}, "study: baseline: expected one of plain, got 'other'"),
        ({"seed": 3}, "study: unknown key 'seed', nearest known is 'seeds'"),
        ({"seeds": []}, "study: seeds: expected"),
        ({"variants": {"plain": {"metod": "ds"}}}, "study: variants.plain: method: expected"),
        ({"variants": {"plain": {"method": "baseline", "teacher": "x"}}},
         "study: variants.plain.teacher: expected one of plain, got 'x'"),
        ({"variants": {"plain": {"method": "lfd", "teacher": "plain"}}},
         "study: variants: expected no circle, got plain -> plain"),
        ({"options": {"train.sed": [1]}}, "expected settings or backend, got 'train.sed'"),
        ({"options": {"backend": ["cuda"]}}, "options.backend: expected one of auto"),
        ({"options": {"scale": []}}, "options.scale: expected a list of values, got none"),
        ({"base": {"train": {"seeed": 1}}}, "config: unknown key 'train.seeed'"),
        ({"variants": {"plain": {"method": "baseline"},
                       "long": {"method": "ds", "time_of": "plain"}}},
         "study: variants.long: expected method and settings of plain beside time_of"),
    ],
)  # fmt: skip
def test_studies_that_are_refused(tmp_path, settings, capsys, values, words):
    path = write_study(tmp_path, **values)
    line = refused(capsys, tmp_path, "compare", path, "--output", tmp_path / "out", *settings)
    assert words in line
    assert not (tmp_path / "out").exists()


def test_what_is_no_study_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, tmp_path, "compare", "table9")
    assert "expected a YAML file or one of fig3, fig4, table2, table5, table6, got 'table9'" in line
    line = refused(capsys, tmp_path, "compare", "table5")
    assert "data.train: expected a folder of HR images, got none" in line
    path = write_study(tmp_path)
    assert "expected a section quick" in refused(capsys, tmp_path, "compare", path, "--quick")
    line = refused(capsys, tmp_path, "compare", path, "data.train=.", "sets.a=nowhere")
    assert "nowhere" in line
    assert contents(tmp_path).keys() == {path}


def test_a_spread_takes_two_values():
    assert Value.of([1.0]) == Value(1.0, None)
    assert Value.of([1.0, 3.0]).text(2) == "2.00 ± 1.41"
