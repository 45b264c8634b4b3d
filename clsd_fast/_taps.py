"""The features of any student, by hooks on its modules; its forward stays as it is."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

#: Pixels a side of the image that a student is tried on: what the method's patches have, which
#: windows and strides of 2, 3, 4, 6, 8, 12 and 16 divide.
TRIAL_SIZE = 48


class Features(NamedTuple):
    """What a student computed on its way to its images."""

    sr: Tensor
    #: The outputs of the taps, [B, C, h, w].
    tapped: list[Tensor]
    #: The inputs of ``deep`` and ``shallow``, of the same shape; None for those that are None.
    deep: Tensor | None
    shallow: Tensor | None


class _Seen(NamedTuple):
    map: Any
    version: int
    has_grad_mode: bool


class _Probe:
    """What one module gives or gets while somebody asks; its methods are the hooks.

    They are bound methods, so that copies and pickles of a student have probes of their own.
    """

    def __init__(self, path: str, side: str) -> None:
        self.path, self.side = path, side
        self.name = f"the {side} of {path}"
        self.seen: list[_Seen] | None = None  # None while nobody asks

    def attach(self, student: nn.Module) -> RemovableHandle:
        module = student.get_submodule(self.path)
        if self.side == "output":
            return module.register_forward_hook(self._see_output)
        return module.register_forward_pre_hook(self._see_input, with_kwargs=True)

    def _see_output(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._see(output)

    def _see_input(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._see(next(iter((*args, *kwargs.values())), None))

    def _see(self, found: Any) -> None:
        if self.seen is not None:
            self.seen.append(_Seen(found, _version(found), torch.is_grad_enabled()))

    def map(self) -> Tensor:
        """The tensor of the one call there was, if heads can have it."""
        calls = self.seen or []
        if len(calls) != 1:
            times = f"{len(calls)} calls"
            raise ValueError(f"CLSD: expected the student to call {self.path} once, got {times}")
        found, version, has_grad_mode = calls[0]
        if not isinstance(found, Tensor):
            kind = type(found).__name__
            raise ValueError(f"CLSD: expected {self.name} to be a tensor, got {kind}")
        if _version(found) != version:
            raise ValueError(f"CLSD: expected {self.name} unmodified, got it modified in place")
        if has_grad_mode != torch.is_grad_enabled():
            raise ValueError(
                f"CLSD: expected {self.name} with its gradient, got it made under no_grad "
                "(checkpoints have it with use_reentrant=False)"
            )
        return found


class Taps:
    """Hooks on a student, by which its features are read.

    Args:
        student: its forward takes images [B, 3, h, w].
        taps: paths of modules whose output is tapped.
        deep: path of the module whose input is G, or None.
        shallow: path of the module whose input is F_0, or None.
        scale: of the student's images.
        channels: C of all features; None until :meth:`find_channels`.

    Raises:
        ValueError: for a path of no module.
    """

    def __init__(
        self,
        student: nn.Module,
        taps: Sequence[str],
        deep: str | None,
        shallow: str | None,
        scale: int,
        channels: int | None,
    ) -> None:
        self.scale, self.channels = scale, channels
        self._outputs = [_Probe(path, "output") for path in taps]
        inputs = {"deep": deep, "shallow": shallow}
        self._inputs = {k: _Probe(path, "input") for k, path in inputs.items() if path is not None}
        self._handles: list[RemovableHandle] = []
        for probe in self._probes():
            _check_path(student, probe.path)

    def attach(self, student: nn.Module) -> None:
        self._handles = [probe.attach(student) for probe in self._probes()]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def find_channels(self, student: nn.Module) -> int:
        """Those of the features, by running the student once on a black image, as in ``eval()``.

        Raises:
            ValueError: as :meth:`run`, and if the student does not take such an image.
        """
        like = next((p for p in student.parameters() if p.is_floating_point()), torch.empty(0))
        lr = like.new_zeros(1, 3, TRIAL_SIZE, TRIAL_SIZE)

        def trial(images: Tensor) -> Tensor:
            try:
                return student(images)
            except Exception as error:  # of somebody else's forward
                got = f"{type(error).__name__}: {' '.join(str(error).split())}"
                raise ValueError(
                    "CLSD: expected a student that runs on an image of shape "
                    f"{list(images.shape)}, or channels=, got {got}"
                ) from error

        self.attach(student)
        try:
            with _in_eval(student), torch.no_grad():
                self.channels = self.run(trial, lr).tapped[0].shape[1]
        finally:
            self.remove()
        return self.channels

    def run(self, student: Callable[[Tensor], Tensor], lr: Tensor) -> Features:
        """The student's images of images [B, 3, h, w], and its features on the way.

        Args:
            student: that which the hooks are on.
            lr: [B, 3, h, w].

        Raises:
            ValueError: for features that are no tensors [B, C, h, w], that were modified in place
                (which a compiled program cannot tell), computed several times, not at all or
                without a gradient, and for images of another shape.
        """
        if lr.dim() != 4:
            raise ValueError(f"CLSD: expected images [B, 3, h, w], got {list(lr.shape)}")
        for probe in self._probes():
            probe.seen = []
        try:
            sr = student(lr)
            maps = [probe.map() for probe in self._probes()]
        finally:
            for probe in self._probes():
                probe.seen = None
        channels = self.channels
        for probe, found in zip(self._probes(), maps, strict=True):
            channels = channels or (found.shape[1] if found.dim() == 4 else None)
            _check_map(probe.name, found, lr, channels)
        check_images("the student's images", sr, lr, self.scale)
        count = len(self._inputs)
        inputs = dict(zip(self._inputs, maps[:count], strict=True))
        return Features(sr, maps[count:], inputs.get("deep"), inputs.get("shallow"))

    def _probes(self) -> list[_Probe]:
        return [*self._inputs.values(), *self._outputs]


def upscaled_shape(lr: Tensor, scale: int) -> list[int]:
    """[B, 3, scale h, scale w] of images lr [B, 3, h, w]."""
    return [*lr.shape[:-2], scale * lr.shape[-2], scale * lr.shape[-1]]


def check_images(name: str, images: object, lr: Tensor, scale: int) -> None:
    """That they have the `upscaled_shape`."""
    shape = upscaled_shape(lr, scale)
    got = str(list(images.shape)) if isinstance(images, Tensor) else type(images).__name__
    if got != str(shape):
        raise ValueError(f"CLSD: expected {name} of shape {shape} at scale {scale}, got {got}")


def _check_map(name: str, found: Tensor, lr: Tensor, channels: int | None) -> None:
    batch, _, height, width = lr.shape
    if list(found.shape) != [batch, channels, height, width]:
        shape = f"[{batch}, {channels or 'C'}, {height}, {width}]"
        raise ValueError(f"CLSD: expected {name} of shape {shape}, got {list(found.shape)}")


def _check_path(student: nn.Module, path: str) -> None:
    try:
        known = path != "" and student.get_submodule(path) is not None
    except AttributeError:
        known = False
    if not known:
        names = [name for name, _ in student.named_modules() if name]
        nearest = difflib.get_close_matches(str(path), names, n=1)
        hint = f", nearest is {nearest[0]}" if nearest else ""
        kind = type(student).__name__
        raise ValueError(f"CLSD: expected the path of a module of {kind}, got {path!r}{hint}")


def _version(x: Any) -> int:
    """How often a tensor was modified, where that is counted."""
    if torch.compiler.is_compiling() or not isinstance(x, Tensor) or x.is_inference():
        return 0
    return x._version


@contextmanager
def _in_eval(model: nn.Module) -> Iterator[None]:
    """As in ``eval()``, which itself would be called on modules that do something of their own."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
