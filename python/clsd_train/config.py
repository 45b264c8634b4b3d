"""Typed configuration: defaults, a YAML file, then dotted overrides."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)
from pydantic_core import ErrorDetails

from .errors import UserError


def _as_sequence(value: Any) -> Any:
    return (value,) if isinstance(value, (str, Path)) else value


Folders = Annotated[tuple[Path, ...], BeforeValidator(_as_sequence)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
OnBadImage = Literal["refuse", "skip"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and the sampler take


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The student; the defaults are EDSR-baseline."""

    num_blocks: PositiveInt = 16
    channels: PositiveInt = 64
    res_scale: PositiveFloat = 1.0


class HeadsConfig(Section):
    """Auxiliary heads and the weights of their losses, as of clsd_fast.CLSD."""

    taps: tuple[PositiveInt, ...] = (5, 10, 15)
    blocks: PositiveInt = 5
    contrast: Literal["info_nce", "patch_nce", "feature_ratio", "pos_only"] = "info_nce"
    ds_weight: NonNegativeFloat = 1.0
    contrast_weight: NonNegativeFloat = 0.1
    skip: Literal["first", "tap", "none"] = "first"
    share_tail: bool = False
    projection_dim: PositiveInt = 128
    temperature: PositiveFloat = 0.07
    num_patches: PositiveInt = 256
    eps: NonNegativeFloat = 1e-7  # of feature_ratio


class DataConfig(Section):
    """Folders of images. Without LR folders, LR images are made by MATLAB's bicubic."""

    train: Folders = ()
    train_lr: Folders = ()
    val: Folders = ()
    val_lr: Folders = ()
    patch_size: PositiveInt = 48  # LR pixels
    on_bad_image: OnBadImage = "refuse"
    cache: Path | None = None  # default: $XDG_CACHE_HOME/clsd-fast


class TrainConfig(Section):
    """Optimisation: Adam on the L1-type losses, the learning rate halved at milestones."""

    iterations: PositiveInt = 300_000
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat = 2e-4
    milestones: tuple[Fraction, ...] = (2 / 3,)  # fractions of the run
    gamma: PositiveFloat = 0.5
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    seed: Seed = 0
    threads: PositiveInt | None = None  # default: torch's
    device: str = "cpu"
    log_every: PositiveInt = 10
    eval_every: PositiveInt = 1000
    save_every: PositiveInt = 1000


class Config(Section):
    """Everything a run is made from."""

    scale: Literal[2, 3, 4] = 2
    method: Literal["baseline", "ds", "cl", "clsd"] = "clsd"
    model: ModelConfig = ModelConfig()
    heads: HeadsConfig = HeadsConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    output: Path = Path("experiments/clsd")

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of deep supervision and of the contrastive loss under the method."""
        supervised = self.method in ("ds", "clsd")
        contrastive = self.method in ("cl", "clsd")
        return (
            self.heads.ds_weight if supervised else 0.0,
            self.heads.contrast_weight if contrastive else 0.0,
        )

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a YAML file (or the defaults) with overrides ``a.b=value``.

    Raises:
        UserError: for a file that is missing or no YAML mapping, an unknown key (naming the
            nearest known one) or a value that does not fit.
    """
    values = {} if path is None else _read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_describe(item) for item in error.errors())) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"config: expected a readable file, got {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"config: expected YAML in {path}, got {reason}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config: expected a mapping in {path}, got {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"config: expected an override key=value, got {override!r}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise UserError(f"config: expected a section at {parent!r} of {key!r}, got a value")
    values[last] = value


def _describe(error: ErrorDetails) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown_key(key)
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a ")
    return f"config: {key}: expected {expected}, got {error['input']!r}"


def _unknown_key(key: str) -> str:
    known = list(_known_keys(Config))
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"config: unknown key {key!r}, nearest known is {nearest[0]!r}"


def _known_keys(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")
