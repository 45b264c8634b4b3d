"""Settings that are shipped, by name."""

from pathlib import Path

PRESETS = {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}
