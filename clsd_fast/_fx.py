"""Modules as nodes of the graphs of ``torch.fx``."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch.fx import Proxy, Tracer

from ._children import calls_its_class

Forward = TypeVar("Forward", bound=Callable[..., Any])


def leaf(forward: Forward) -> Forward:
    """Let any tracer of ``torch.fx`` record calls of the module as one node each.

    Tracers take modules of ``torch.nn`` alone for leaves. Where a call is more than this forward,
    as with a hook or in a subclass, it is traced; so is a root, which is no module's child.
    """

    @wraps(forward)
    def call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        for argument in (*args, *kwargs.values()):
            if isinstance(argument, Proxy) and isinstance(argument.tracer, Tracer):
                name = argument.tracer.path_of_module(self)
                if name and calls_its_class(self) and type(self).forward is call:
                    return argument.tracer.create_proxy("call_module", name, args, kwargs)
                break
        return forward(self, *args, **kwargs)

    return cast(Forward, call)
