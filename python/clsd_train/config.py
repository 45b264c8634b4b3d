"""Typed configuration: defaults, a YAML file, then dotted overrides."""

import difflib
import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from .errors import UserError, shorten
from .paths import absolute, expand_inputs, expand_path
from .yaml_text import DEEPEST, dump_scalar, parse


def _expand_folders(value: Any) -> Any:
    texts = [value] if isinstance(value, (str, Path)) else ([] if value is None else value)
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, (str, Path)) for t in texts):
        return value
    return _valid(expand_inputs, texts)


def _expand(value: Any) -> Any:
    return _valid(expand_path, value) if isinstance(value, (str, Path)) else value


def _valid(expand: Any, value: Any) -> Any:
    try:
        return expand(value)
    except UserError as error:
        raise ValueError(str(error)) from None


Folders = Annotated[tuple[Path, ...], BeforeValidator(_expand_folders)]
SetName = Annotated[str, Field(pattern=r"^[\w.-]+$")]
FolderSets = dict[SetName, Folders]
Target = Annotated[Path, BeforeValidator(_expand)]
# Each is far above what anyone trains, and below what overflows on the way.
Count = Annotated[int, Field(gt=0, lt=2**31)]
Blocks = Annotated[int, Field(gt=0, le=4096)]
Channels = Annotated[int, Field(gt=0, le=2**16)]
Threads = Annotated[int, Field(gt=0, le=1024)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# Bytes of a YAML file: a device, or a file that was named by mistake, may have no end.
LARGEST = 2**20
# What pydantic says in the words of programs.
SENTENCES = {
    "model_type": "section of keys",
    "tuple_type": "list, such as [1, 2]",
    "path_type": "path",
    "int_parsing": "valid integer",
    "int_parsing_size": "integer of fewer digits",
    "int_from_float": "valid integer",
    "float_parsing": "valid number",
    "bool_parsing": "true or false",
    "dict_type": "mapping, such as {Set5: data/Set5/HR}",
    "string_pattern_mismatch": "name of letters, digits, '_', '.' and '-'",
}
OnBadImage = Literal["refuse", "skip"]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and the sampler take


Kind = TypeVar("Kind", bound="Section")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The student; the defaults are EDSR-baseline."""

    num_blocks: Blocks = Field(default=16, description="residual blocks")
    channels: Channels = Field(default=64, description="channels of all feature maps")
    res_scale: PositiveFloat = Field(default=1.0, description="factor of each residual branch")


class HeadsConfig(Section):
    """Auxiliary heads and the weights of their losses, as of clsd_fast.CLSD."""

    taps: tuple[Blocks, ...] = Field(
        default=(5, 10, 15), description="blocks, counted from 1, that heads sit on"
    )
    blocks: Blocks = Field(default=5, description="residual blocks of a head")
    contrast: Literal["info_nce", "patch_nce", "feature_ratio", "vgg_ratio", "pos_only"] = Field(
        default="info_nce", description="contrastive loss"
    )
    vgg: Target | None = Field(
        default=None, description="file of VGG19's weights as torchvision names them, of vgg_ratio"
    )
    ds_weight: NonNegativeFloat = Field(default=1.0, description="weight of the heads' L1 losses")
    contrast_weight: NonNegativeFloat = Field(
        default=0.1, description="weight of the contrastive loss"
    )
    skip: Literal["first", "tap", "none"] = Field(
        default="first", description="what a head's skip adds"
    )
    share_tail: bool = Field(default=False, description="whether heads use the student's tail")
    projection_dim: Channels = Field(default=128, description="features that are contrasted")
    temperature: PositiveFloat = Field(default=0.07, description="of info_nce and patch_nce")
    gather_keys: bool = Field(
        default=True, description="whether info_nce sees the patches of all ranks, or its own"
    )
    num_patches: Count = Field(default=256, description="positions per image, of patch_nce")
    eps: NonNegativeFloat = Field(
        default=1e-7, description="added to the denominator of feature_ratio and vgg_ratio"
    )


class TeacherConfig(Section):
    """The frozen EDSR that the methods fakd and lfd learn from."""

    checkpoint: Target | None = Field(default=None, description="its weights, as clsd eval's")
    res_scale: PositiveFloat | None = Field(
        default=None, description="its factor of each residual branch; null: as the file says"
    )
    value_range: PositiveFloat | None = Field(
        default=None, description="its value of white; null: as the file says"
    )
    mean_shift: bool | None = Field(
        default=None, description="whether it takes the mean colour off; null: as the file says"
    )
    depths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1 / 3, 2 / 3, 1.0),
        min_length=1,
        description="shares of either's blocks after which features are compared",
    )
    affinity_weight: NonNegativeFloat = Field(
        default=10.0, description="weight of fakd's similarities beside errors in 0..255"
    )
    feature_weight: NonNegativeFloat = Field(
        default=1.0, description="weight of lfd's features beside errors in the same units"
    )


class DataConfig(Section):
    """Folders of images. Without LR folders, LR images are made by MATLAB's bicubic."""

    train: Folders = Field(
        default=(), description="folders of HR images to train on; ~ and globs are read"
    )
    train_lr: Folders = Field(default=(), description="folders of their LR images")
    val: Folders = Field(
        default=(), description="folders of HR images to validate on; none: no validation"
    )
    val_lr: Folders = Field(default=(), description="folders of their LR images")
    val_sets: FolderSets = Field(
        default={}, description="further validation sets, each scored alone: folders by name"
    )
    val_sets_lr: FolderSets = Field(
        default={}, description="folders of their LR images, by the same names"
    )
    patch_size: Count = Field(default=48, description="side of a training patch in LR pixels")
    residency: Literal["auto", "device", "host"] = Field(
        default="auto",
        description="where training images lie, and patches are cut; on a GPU if they fit",
    )
    on_bad_image: OnBadImage = Field(
        default="refuse", description="what to do about an unusable image"
    )
    cache: Target | None = Field(
        default=None, description="folder of decoded images; null: $XDG_CACHE_HOME/clsd-fast"
    )

    @model_validator(mode="after")
    def _check_names(self) -> "DataConfig":
        for name in self.val_sets_lr:
            if name not in self.val_sets:
                raise ValueError(f"expected val_sets_lr of names in val_sets, got {name}")
        return self

    @property
    def validation_folders(self) -> dict[str, tuple[tuple[Path, ...], tuple[Path, ...]]]:
        """HR and LR folders of each validation set; that of ``val`` has no name."""
        sets = {name: (hr, self.val_sets_lr.get(name, ())) for name, hr in self.val_sets.items()}
        return {"": (self.val, self.val_lr), **sets} if self.val else sets


class TrainConfig(Section):
    """Optimisation: Adam on the L1-type losses, the learning rate falling by a schedule."""

    iterations: Count = Field(default=300_000, description="steps of the whole run")
    batch_size: Count = Field(default=16, description="patches of a step")
    accumulate: Count = Field(
        default=1, description="equal parts of a step's batch that are computed one by one"
    )
    init: Target | None = Field(
        default=None, description="weights that the student begins with; at another scale no tail's"
    )
    learning_rate: PositiveFloat = Field(default=2e-4, description="of Adam, at its highest")
    warm_up: NonNegativeInt = Field(
        default=0, description="iterations in which the learning rate rises from 0"
    )
    schedule: Literal["milestones", "cosine"] = Field(
        default="milestones", description="how the learning rate falls"
    )
    learning_rate_end: NonNegativeFloat = Field(
        default=0.0, description="where cosine arrives at the end of the run"
    )
    milestones: tuple[Fraction, ...] = Field(
        default=(2 / 3,), description="fractions of the run at which the learning rate falls"
    )
    gamma: PositiveFloat = Field(
        default=0.5, description="factor of the learning rate at a milestone"
    )
    betas: tuple[Fraction, Fraction] = Field(default=(0.9, 0.999), description="of Adam")
    eps: PositiveFloat = Field(default=1e-8, description="of Adam")
    clip: PositiveFloat | None = Field(
        default=None, description="largest norm of all gradients together; null: any"
    )
    ema: Decay = Field(
        default=0.0,
        description="decay of the weights' moving average, which is then the student; 0: none",
    )
    seed: Seed = Field(default=0, description="of the weights and the batches")
    threads: Threads | None = Field(
        default=None, description="threads of PyTorch; null: its own choice"
    )
    device: str = Field(default="cpu", description="PyTorch device, such as cpu or cuda")
    precision: Literal["float32", "bf16", "fp16"] = Field(
        default="float32", description="of images and features; parameters stay float32"
    )
    graph: Literal["auto", "off"] = Field(
        default="auto", description="on a GPU, a whole step as one CUDA graph where it can be one"
    )
    log_every: Count = Field(default=10, description="iterations between log entries")
    eval_every: Count = Field(default=1000, description="iterations between validations")
    save_every: Count = Field(default=1000, description="iterations between checkpoints")
    patience: Count | None = Field(
        default=None, description="validations without a better PSNR that end the run; null: none"
    )

    @model_validator(mode="after")
    def _check_parts(self) -> "TrainConfig":
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"expected a batch_size that accumulate={self.accumulate} divides, "
                f"got {self.batch_size}"
            )
        return self


class Config(Section):
    """Everything a run is made from."""

    scale: Literal[2, 3, 4] = Field(default=2, description="upscaling factor")
    method: Literal["baseline", "ds", "cl", "clsd", "fakd", "lfd"] = Field(
        default="clsd",
        description="the student alone, with deep supervision, with contrast, with both, "
        "with a teacher's features in two ways",
    )
    model: ModelConfig = ModelConfig()
    heads: HeadsConfig = HeadsConfig()
    teacher: TeacherConfig = TeacherConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    output: Target = Field(default=Path("experiments/clsd"), description="folder of the run")

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
        """YAML with the meaning of each key behind it, which reads back as the same."""
        lines = []
        for key, value, meaning in self.settings():
            *sections, name = key.split(".")
            text = f": {dump_scalar(value)}  # " if value is not None or sections else ":  # "
            lines.append(f"{'  ' * len(sections)}{name}{text}{meaning}\n")
        return "".join(lines)

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """Dotted key, plain value and meaning of each setting; a section's value is None."""
        values = flatten(self)
        for key, field in _fields(Config):
            yield key, values.get(key), _meaning(field)

    def with_absolute_paths(self) -> "Config":
        """The same run from any folder."""
        data = self.data
        values: dict[str, Any] = {"cache": _absolute(data.cache)}
        for key in ("train", "train_lr", "val", "val_lr"):
            values[key] = absolute(getattr(data, key))
        for key in ("val_sets", "val_sets_lr"):
            values[key] = {name: absolute(paths) for name, paths in getattr(data, key).items()}
        sections = {
            "data": data.model_copy(update=values),
            "heads": self.heads.model_copy(update={"vgg": _absolute(self.heads.vgg)}),
            "teacher": self.teacher.model_copy(
                update={"checkpoint": _absolute(self.teacher.checkpoint)}
            ),
            "train": self.train.model_copy(update={"init": _absolute(self.train.init)}),
        }
        return self.model_copy(update={**sections, "output": _absolute(self.output)})


def _absolute(path: Path | None) -> Path | None:
    return absolute([path])[0] if path else None


def flatten(config: Config) -> dict[str, Any]:
    """Plain values by dotted key."""
    values: dict[str, Any] = {}
    for name, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            values |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            values[name] = value
    return values


def changes(old: Config, new: Config) -> dict[str, list[Any]]:
    """Old and new value of each setting that differs, by dotted key."""
    before, after = (flatten(config.with_absolute_paths()) for config in (old, new))
    return {key: [before[key], after[key]] for key in before if before[key] != after[key]}


def load_config(
    path: Path | None, overrides: Sequence[str] = (), base: Config | None = None
) -> Config:
    """The base (or the defaults) with the values of a YAML file, then overrides ``a.b=value``.

    Raises:
        UserError: for a file that is missing or no YAML mapping, an unknown key (naming the
            nearest known one) or a value that does not fit.
    """
    values = base.model_dump(mode="json") if base else {}
    if path is not None:
        merge(values, read_yaml(path, is_text))
    for override in overrides:
        merge(values, parse_override(override))
    return validate_config(values)


def validate_config(values: dict[str, Any]) -> Config:
    """The configuration of plain values by section.

    Raises:
        UserError: for an unknown key or a value that does not fit.
    """
    return validate(Config, values, "config")


def validate(kind: type[Kind], values: dict[str, Any], name: str) -> Kind:
    """A section of plain values, by which name messages call it.

    Raises:
        UserError: for an unknown key or a value that does not fit.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        texts = [_describe(item, kind, name) for item in error.errors()]
        raise UserError("; ".join(texts)) from None
    except RecursionError:
        raise UserError(f"{name}: expected sections of values, got deeper ones") from None


def read_yaml(path: Path, is_text: Callable[[str], bool]) -> dict[str, Any]:
    """The values that a YAML file states, by section; is_text as of :func:`parse`.

    Raises:
        UserError: for a file that is missing or no YAML mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"config: expected a readable file, got {path}: {reason}") from None
    if len(content) > LARGEST:
        raise UserError(f"config: expected at most {LARGEST} bytes of YAML in {path}, got more")
    values = parse(content, is_text, str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"config: expected a mapping in {path}, got {type(values).__name__}")
    return values


def parse_override(override: str) -> dict[str, Any]:
    """The values of ``a.b=value``, by section.

    Raises:
        UserError: if it is no such text.
    """
    key, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"config: expected an override key=value, got {shorten(override)}")
    if key.count(".") > DEEPEST:
        raise UserError(_unknown_key(key, Config, "config"))
    value: Any = text
    # A path is what stands there, unless it is a list of them, or none where that means something.
    listed = text.startswith("[") and not os.path.lexists(text)
    if not is_text(key) or listed or (text == "null" and _TEXT_KEYS.get(key, "") is None):
        try:
            value = parse(text, is_text, "the override", key) if text else ""
        except UserError:
            value = text
    for part in reversed(key.split(".")[1:]):
        value = {part: value}
    return {key.split(".")[0]: value}


def merge(values: dict[str, Any], added: dict[str, Any]) -> None:
    """Put added values into those by section."""
    for key, value in added.items():
        if isinstance(value, dict) and isinstance(values.get(key), dict):
            merge(values[key], value)
        else:
            values[key] = value


def _describe(error: ErrorDetails, kind: type[Section], name: str) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return _unknown_key(key, kind, name)
    if error["type"] == "value_error":
        return f"{name}: {shorten(key)[1:-1]}: {error['ctx']['error']}"
    expected = error["msg"].removeprefix("Input should be ").removeprefix("a ")
    if error["type"] in SENTENCES:
        expected = SENTENCES[error["type"]]
    return f"{name}: {shorten(key)[1:-1]}: expected {expected}, got {shorten(error['input'])}"


def _unknown_key(key: str, kind: type[Section], name: str) -> str:
    known = [known for known, _ in _fields(kind)]
    nearest = difflib.get_close_matches(key[:80], known, n=1, cutoff=0.0)
    return f"{name}: unknown key {shorten(key)}, nearest known is {nearest[0]!r}"


def _fields(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        yield prefix + name, field
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _fields(field.annotation, f"{prefix}{name}.")


def is_key(key: str) -> bool:
    """Whether there is such a setting."""
    return any(key == name for name, _ in _fields(Config))


def is_text(key: str) -> bool:
    """Whether a setting is a text or paths: what may look like a number."""
    return key in _TEXT_KEYS or key.rpartition(".")[0] in _NAMED_KEYS


def _holds_text(annotation: Any) -> bool:
    if get_origin(annotation) in (Literal, dict):
        return False
    return annotation in (str, Path) or any(map(_holds_text, get_args(annotation)))


# With their defaults.
_TEXT_KEYS = {name: f.default for name, f in _fields(Config) if _holds_text(f.annotation)}
# Of paths by name.
_NAMED_KEYS = {name for name, f in _fields(Config) if get_origin(f.annotation) is dict}


def _meaning(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return f"{field.description}: {', '.join(map(str, get_args(field.annotation)))}"
    return field.description or inspect.getdoc(field.annotation) or ""
