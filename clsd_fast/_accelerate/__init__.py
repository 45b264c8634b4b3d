"""The operators for networks that people have: ``accelerate`` and ``restore``.

How: a module that an operator can stand for gets another class, and nothing else. It is a subclass
of the module's own, by the same name, with a forward that calls the operator, and the module's own
forward where that cannot serve a call. So isinstance, names, parameters, hooks and state_dict are
what they were; the class knows what was found (``plan``), the instance keeps nothing, and pickling
and copying make the class anew. Whatever a forward stands for is looked at again in each call, as
in ``clsd_fast.nn``: a child that was hooked, replaced or parametrised since then runs itself.

Data flows one way: ``find`` says of each module what it could be, convolutions before the blocks
and those before the sequences and forwards that are made of them; ``differs`` runs it against what
it is; then it gets its class.
"""

from typing import TypeVar

from torch import nn

from .classes import Accelerated, is_accelerated
from .find import children_first, differs, find
from .report import Report, Row, make_report

__all__ = ["Report", "Row", "accelerate", "restore"]

Model = TypeVar("Model", bound=nn.Module)


class _Accelerate:
    """See ``__call__``; a class, so that ``accelerate.report`` is where one looks for it."""

    def __call__(self, model: Model, *, verify: bool = True) -> Model:
        """Run a network's 3x3 convolutions, residual blocks and upsamplers on the operators.

        Equivalent to::

            model

        In place. What is replaced, found by structure, whatever its names are:

        - a module of two convolutions with a ReLU between, that computes ``x + s * f`` (s a number
          or an attribute): :func:`clsd_fast.residual_block`; with LeakyReLU or PReLU, or with an
          activation of the sum, :func:`clsd_fast.conv3x3` twice. Which of them, is decided in
          float64 on random numbers, and a module that computes something else is left alone;
        - in an ``nn.Sequential`` or a subclass without a forward of its own: such blocks in a row
          that are alike (:func:`clsd_fast.residual_blocks`), convolutions each with a pixel shuffle
          (:func:`clsd_fast.pixel_shuffle_upsample`), those and a convolution to at most 4 channels
          (:func:`clsd_fast.upsample_tail`), a convolution and an activation;
        - a module whose forward is ``a(conv(x))`` of an activation;
        - in any other forward, such layers that are called on each other's results, as in
          ``self.last(self.upsample(x))``, in a loop over an ``nn.ModuleList``, or with a sum and
          a factor, ``self.act(self.conv(x) * 0.2 + y)``, as its source says;
        - every other 3x3 convolution with stride 1 and zero padding 1 (:func:`clsd_fast.conv3x3`).

        Parameters, names of modules, hooks, state_dict, modes, copies and pickles are what they
        were. The modules' own forwards run where no kernel serves a call, and where a program is
        recorded (``torch.export``, ``torch.jit.trace``, ONNX), so that it needs PyTorch alone.
        A child that is hooked, parametrised or replaced later runs itself.

        Args:
            model: any network; one that is accelerated already may be given again.
            verify: compare each replaced convolution and block with what it was, on a random image
                on its device and in its dtype, and leave it alone if it differs by more than
                rounding.

        Returns:
            The model itself.

        Raises:
            TypeError: if model is no ``nn.Module``.
        """
        _check("accelerate", model)
        for module in children_first(model):
            found = find(module)
            if isinstance(found, type) and not (verify and differs(module, found)):
                module.__class__ = found
        return model

    def report(self, model: nn.Module) -> Report:
        """What :func:`accelerate` replaced by what, and what it left alone and why.

        Args:
            model: any network.

        Returns:
            ``rows``, each with name, layer, operator, reason and gain (that of ``docs/cpu.md``);
            printed, a table.

        Raises:
            TypeError: if model is no ``nn.Module``.
        """
        _check("accelerate.report", model)
        return make_report(model)


accelerate = _Accelerate()


def restore(model: Model) -> Model:
    """Undo :func:`accelerate`, in place.

    Args:
        model: any network; what is not accelerated is left as it is.

    Returns:
        The model itself.

    Raises:
        TypeError: if model is no ``nn.Module``.
        ValueError: if a module was parametrised since; nothing is undone then.
    """
    _check("restore", model)
    replaced = {
        name: module for name, module in model.named_modules() if isinstance(module, Accelerated)
    }
    for name, module in replaced.items():
        if not is_accelerated(module):
            raise ValueError(f"restore: expected {name} as accelerate left it, got it parametrised")
    for module in replaced.values():
        module.__class__ = module._accelerated.original  # type: ignore[assignment]
    return model


def _check(function: str, model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{function}: expected an nn.Module, got {type(model).__name__}")
