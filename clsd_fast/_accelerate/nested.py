"""Modules whose forward calls a layer on another's result, as in ``self.last(self.upsample(x))``.

Such calls are read in the source of the forward. What is between them has no name there, so nothing
else can use it, whatever way the forward takes; and Python looks each layer up when it would. The
forward of a replaced module is therefore its own, but for those calls: they are made as one, by
``run_nested``, which runs the layers as an ``nn.Sequential`` of them is run.
"""

import ast
import copy
import functools
import linecache
from collections.abc import Iterator, Sequence
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple, TypeGuard, cast

from torch import nn

from .classes import Accelerated, original, takes
from .sequences import Pattern, flattened, patterns_in, run

#: What a forward knows `run_nested` by; none has such a name of its own.
_NAME = "_clsd_fast_run_nested"


class Reading(NamedTuple):
    """What a forward's source says."""

    #: The same, with its nested calls made by `run_nested`.
    forward: FunctionType
    #: Of each nest the names that are called, the inner one first: ``("self", "upsample")``.
    nests: tuple[tuple[tuple[str, ...], ...], ...]


class AcceleratedNested(Accelerated):
    """A module whose forward runs layers that it calls on each other's results by the patterns."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A pickle may be loaded where the source is not: the forward is the module's own then.
        found = read(cls._accelerated.original.forward) if "_accelerated" in vars(cls) else None
        if found:
            cls.forward = found.forward


def run_nested(*callees_and_x: Any) -> Any:
    """``f(g(x))`` of f, g and x."""
    *callees, x = callees_and_x
    callees.reverse()
    if takes(x):
        return run(list(flattened(callees)), x)
    for callee in callees:
        x = callee(x)
    return x


def patterns_across(module: nn.Module) -> Iterator[tuple[Pattern, list[nn.Module]]]:
    """The patterns of layers that the forward of a module brings together, in its order."""
    found = None if "forward" in module.__dict__ else read(_forward(module))
    for nest in found.nests if found else ():
        callees = [_resolve(module, path, cast(FunctionType, _forward(module))) for path in nest]
        for pattern, layers in patterns_in(flattened(callees)):
            if not any(set(layers) <= set(flattened([callee])) for callee in callees):
                yield pattern, layers


def why_not_nested(module: nn.Module) -> str | None:
    """Why nothing is known of how a module calls layers that patterns begin with."""
    layers = list(module.children())
    if len(layers) < 2 or not any(isinstance(layer, Accelerated) for layer in layers):
        return None
    is_read = "forward" not in module.__dict__ and read(_forward(module))
    return None if is_read else "its forward cannot be read: its layers run one by one"


def _forward(module: nn.Module) -> object:
    """Of the class, whatever was made of that; None of TorchScript's."""
    return getattr(original(module), "forward", None)


def _resolve(module: nn.Module, path: Sequence[str], forward: FunctionType) -> Any:
    """What the names stand for, if it is a layer of the module or a function of some library."""
    root, *names = path
    is_layer = root == forward.__code__.co_varnames[0]
    found: Any = module if is_layer else forward.__globals__.get(root)
    for name in names:
        if isinstance(found, nn.Module):
            found = found._modules.get(name)
        else:
            found = getattr(found, name, None) if isinstance(found, ModuleType) else None
    return found


def read(forward: object) -> Reading | None:
    """None of what has no source, or not the one that it was compiled from."""
    is_method = isinstance(forward, FunctionType) and forward.__code__.co_argcount > 0
    return _read(cast(FunctionType, forward)) if is_method else None


@functools.cache
def _read(forward: FunctionType) -> Reading | None:
    """The file is compiled anew: as it is, to see that it is the forward's, and with the change."""
    code = forward.__code__
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename, forward.__globals__)))
        definition = next(node for node in ast.walk(tree) if _defines(node, code))
    except (SyntaxError, StopIteration):
        return None
    calls = _Calls(code)
    body = [calls.visit(copy.deepcopy(statement)) for statement in definition.body]
    if not calls.nests:
        return Reading(forward, ())
    if _compiled(tree, code) != code:
        return None
    definition.body = body
    _put_into_function(definition)
    made = _function(cast(CodeType, _compiled(tree, code)), forward)
    return Reading(made, tuple(calls.nests))


def _defines(node: ast.AST, code: CodeType) -> TypeGuard[ast.FunctionDef]:
    if not isinstance(node, ast.FunctionDef) or node.name != code.co_name:
        return False
    first: ast.stmt | ast.expr = node.decorator_list[0] if node.decorator_list else node
    return first.lineno == code.co_firstlineno


def _put_into_function(definition: ast.FunctionDef) -> None:
    """One that is never called, whose argument is what the code inside has `run_nested` by."""
    around = cast(ast.FunctionDef, ast.parse(f"def {_NAME}({_NAME}): pass").body[0])
    around.body = [copy.copy(definition)]
    vars(definition).update(vars(around))


def _function(code: CodeType, like: FunctionType) -> FunctionType:
    cells = dict(zip(like.__code__.co_freevars, like.__closure__ or (), strict=True))
    cells[_NAME] = CellType(run_nested)
    closure = tuple(cells[name] for name in code.co_freevars)
    made = FunctionType(code, like.__globals__, None, like.__defaults__, closure)
    made.__kwdefaults__ = like.__kwdefaults__
    return cast(FunctionType, functools.update_wrapper(made, like))


def _compiled(tree: ast.Module, like: CodeType) -> CodeType | None:
    """The code of that name and line in a file."""
    return _find(compile(tree, like.co_filename, "exec", dont_inherit=True), like)


def _find(code: CodeType, like: CodeType) -> CodeType | None:
    if (code.co_name, code.co_firstlineno) == (like.co_name, like.co_firstlineno):
        return code
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return next(filter(None, (_find(const, like) for const in inner)), None)


class _Calls(ast.NodeTransformer):
    """Makes ``f(g(x))`` the call ``run_nested(f, g, x)``, where f and g are dotted names and one is
    of the module: Python looks up both, then x, and calls g, then f, as before."""

    def __init__(self, code: CodeType) -> None:
        self.nests: list[tuple[tuple[str, ...], ...]] = []
        self._module, *self._locals = code.co_varnames

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802 - of ast's
        callees, paths, argument = [], [], cast(ast.expr, node)
        while isinstance(argument, ast.Call) and self._path(argument):
            callees.append(argument.func)
            paths.append(self._path(argument))
            argument = argument.args[0]
        if len(callees) < 2 or all(path[0] != self._module for path in paths):
            return self.generic_visit(node)
        self.nests.append(tuple(reversed(paths)))
        called = ast.Call(ast.Name(_NAME, ast.Load()), [*callees, self.visit(argument)], [])
        return ast.fix_missing_locations(ast.copy_location(called, node))

    def _path(self, node: ast.Call) -> tuple[str, ...]:
        """The names of what is called with one argument; none of a local variable."""
        if len(node.args) != 1 or isinstance(node.args[0], ast.Starred) or node.keywords:
            return ()
        names, function = [], node.func
        while isinstance(function, ast.Attribute):
            names.append(function.attr)
            function = function.value
        if not isinstance(function, ast.Name) or function.id in self._locals:
            return ()
        return (function.id, *reversed(names))
