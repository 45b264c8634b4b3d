"""Whether children are what they were made as, so that one operator may stand for them."""

from torch import nn

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def calls_its_class(module: nn.Module) -> bool:
    """Whether a call of the module is the forward of its class and nothing else."""
    attributes = module.__dict__
    return "forward" not in attributes and not any(attributes[hooks] for hooks in _HOOKS)


def is_untouched(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a call of the module is the class's forward, with its defaults, and nothing else."""
    if type(module) is not kind or not calls_its_class(module):
        return False
    is_as_made = getattr(kind, "is_as_made", None)
    return is_as_made is None or is_as_made(module)


def are_untouched(modules: nn.Sequential, *kinds: type[nn.Module]) -> bool:
    return len(modules) == len(kinds) and all(map(is_untouched, modules, kinds))
