"""Installs versions of Triton, each into a folder of its own, and has the kernels work with each
(`triton_smoke`): ``python triton_versions.py 3.6.0 3.9.0``. It fails where one does not."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
#: Interpreters of Triton before 3.7 need it.
NUMPY = "numpy<2.4"


def works(version: str, folder: str) -> bool:
    """Whether all is well with a version, which is installed into a folder; what is not, is
    printed."""
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
    subprocess.run([*install, f"triton=={version}", NUMPY], check=True)
    paths = [folder, str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment["TRITON_CACHE_DIR"] = str(Path(folder) / "cache")
    environment.pop("TRITON_INTERPRET", None)
    all_well = True
    for mode, interprets in (("compile", {}), ("interpret", {"TRITON_INTERPRET": "1"})):
        command = [sys.executable, HERE / "triton_smoke.py", mode]
        run = subprocess.run(command, env=environment | interprets, capture_output=True, text=True)
        is_well = run.returncode == 0 and f"Triton {version}" in run.stdout
        print(run.stdout.strip() if is_well else f"Triton {version}: {run.stderr}", flush=True)
        all_well = all_well and is_well
    return all_well


def main(*versions: str) -> None:
    results = []
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            results.append(works(version, folder))
    sys.exit(not results or not all(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
