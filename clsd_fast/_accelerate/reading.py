"""What the source of a forward says of the layers that it calls one after another.

It is compiled anew twice: as it is, to see that it is what the forward was compiled from, and with
those calls made as one.
"""

import ast
import copy
import functools
import linecache
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import CellType, CodeType, FunctionType
from typing import NamedTuple, TypeGuard, cast

#: What a forward knows the function by that makes the calls; none has such a name of its own.
_NAME = "_clsd_fast_run_nested"
#: What would have variables read or written out of the order of statements, or by others.
_INTRICATE = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.Lambda,
    ast.NamedExpr,
    ast.Try,
)
#: A dotted name, as ``("self", "upsample")``.
Path = tuple[str, ...]


class Nest(NamedTuple):
    """Calls that are made as one."""

    #: Of what is called, the first one first.
    paths: tuple[Path, ...]
    #: Whether the only one is of a list, each of which is called.
    each: bool = False


class Reading(NamedTuple):
    """What a forward's source says."""

    #: The same, with its nested calls made by `run_nested`.
    forward: FunctionType
    nests: tuple[Nest, ...]


def read(forward: object, run_nested: Callable) -> Reading | None:
    """None of what has no source, or not the one that it was compiled from.

    Args:
        run_nested: ``run_nested(f, g, x)`` is ``f(g(x))``, of any number of callees, among which
            ``(sign, y)`` stands for an operation with y.
    """
    is_method = isinstance(forward, FunctionType) and forward.__code__.co_argcount > 0
    return _read(cast(FunctionType, forward), run_nested) if is_method else None


@functools.cache
def _read(forward: FunctionType, run_nested: Callable) -> Reading | None:
    code = forward.__code__
    try:
        tree = ast.parse("".join(linecache.getlines(code.co_filename, forward.__globals__)))
        definition = next(node for node in ast.walk(tree) if _defines(node, code))
    except (SyntaxError, ValueError, StopIteration):  # no Python, or without a forward
        return None
    calls = _Calls(definition, code)
    body = calls.rewritten(copy.deepcopy(definition)).body
    if not calls.nests:
        return Reading(forward, ())
    if _compiled(tree, code) != code:
        return None
    definition.body = body
    _put_into_function(definition)
    made = _function(cast(CodeType, _compiled(tree, code)), forward, run_nested)
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


def _function(code: CodeType, like: FunctionType, run_nested: Callable) -> FunctionType:
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


class _Loop(NamedTuple):
    """A loop that calls each item of a list with the result of that before."""

    item: str
    targets: list[ast.expr]
    call: ast.Call
    path: Path


class _Link(NamedTuple):
    """What is applied to an expression."""

    path: Path
    #: What `run_nested` takes for it.
    given: ast.expr
    node: ast.Call | ast.BinOp
    #: The expression, a child of the node.
    inner: ast.expr


class _InPlace(ast.Add):
    """Of ``x += y``, which is no expression; never compiled."""


class _Calls(ast.NodeTransformer):
    """Makes one call of `_NAME` of layers that are called on each other's results.

    ``f(g(x))`` becomes ``run_nested(f, g, x)``, where f and g are dotted names, one of them of the
    module: Python looks up both, then x, and calls g, then f, as before. ``g(x) * 0.2 + y`` becomes
    ``run_nested(("v + y", y), ("v * y", 0.2), g, x)``, for a local variable y, which g cannot set.

    So do ``v = g(x)`` and ``v = f(v)`` or ``v += y`` in the next line, and ``w = f(v)`` where no
    other reads v; f is looked up before g is called then. The loops

        for layer in self.layers: x = layer(x)
        for i in range(len(self.layers)): x = self.layers[i](x)

    become ``x = run_nested(*[layer for layer in self.layers][::-1], x)``, and so the second.
    """

    def __init__(self, definition: ast.FunctionDef, code: CodeType) -> None:
        self.nests: list[Nest] = []
        self._module, *self._locals = code.co_varnames
        nodes = list(ast.walk(definition))
        # Variables that nothing but the statements themselves, in their order, reads and writes.
        is_plain = not any(isinstance(node, _INTRICATE) for node in nodes if node != definition)
        self._own = {*code.co_varnames} - {*code.co_cellvars} if is_plain else set()
        self._uses = Counter(node.id for node in nodes if isinstance(node, ast.Name))
        loops = [self._loop(node) for node in nodes if isinstance(node, ast.For)]
        self._loops = Counter(loop.item for loop in loops if loop)

    def rewritten(self, definition: ast.FunctionDef) -> ast.FunctionDef:
        for block in _blocks([definition]):
            block[:] = self._merged(block)
        return cast(ast.FunctionDef, self.generic_visit(definition))

    def visit_Call(self, node: ast.Call) -> ast.AST:  # noqa: N802 - of ast's
        return self._visit_nest(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:  # noqa: N802 - of ast's
        return self._visit_nest(node)

    def _visit_nest(self, node: ast.expr) -> ast.AST:
        links, argument = self._links(node)
        if len(links) < 2 or all(link.path[0] != self._module for link in links):
            return self.generic_visit(node)
        self.nests.append(Nest(tuple(link.path for link in reversed(links))))
        return _call([*(link.given for link in links), self.visit(argument)], node)

    def _links(self, node: ast.expr) -> tuple[list[_Link], ast.expr]:
        """What is applied one after another, from the last to the first call, and to what."""
        links, node = self._applied(node)
        while links and not isinstance(links[-1].node, ast.Call):
            node = links.pop().node
        return links, node

    def _applied(self, node: ast.expr, first: str = "") -> tuple[list[_Link], ast.expr]:
        """All that is applied, to a variable of that name if there is a choice."""
        links = []
        while link := self._link(node, first):
            links.append(link)
            node = link.inner
        return links, node

    def _link(self, node: ast.expr, first: str) -> _Link | None:
        match node:
            case ast.Call(args=[argument], keywords=[]) if not isinstance(argument, ast.Starred):
                path = self._path(node.func)
                return _Link(path, node.func, node, argument) if path else None
            case ast.BinOp(inner, ast.Add() as add, ast.Name(name)) if name in self._own - {first}:
                sign = "v += y" if isinstance(add, _InPlace) else "v + y"
                return _operation(sign, node, inner, node.right)
            case ast.BinOp(ast.Name(name), ast.Add(), inner) if name in self._own:
                return _operation("y + v", node, inner, node.left)
            case ast.BinOp(inner, ast.Mult(), ast.Constant(float())):
                return _operation("v * y", node, inner, node.right)
            case ast.BinOp(ast.Constant(float()), ast.Mult(), inner):
                return _operation("y * v", node, inner, node.left)
        return None

    def _merged(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Without variables that the next statement alone reads, as what begins its calls."""
        found = statements[:1]
        for statement in statements[1:]:
            merged = self._merge(found[-1], statement)
            found[-1:] = [merged] if merged else [found[-1], statement]
        return found

    def _merge(self, first: ast.stmt, second: ast.stmt) -> ast.stmt | None:
        match first:
            case ast.Assign([ast.Name(name)], value) if name in self._own:
                links, _ = self._links(value)
            case _:
                return None
        if all(link.path[0] != self._module for link in links):
            return None
        match second:
            case ast.AugAssign(ast.Name(target), ast.Add(), ast.Name(other)) if target == name:
                if other == name or other not in self._own:
                    return None
                total = ast.copy_location(ast.BinOp(value, _InPlace(), second.value), second)
                self._uses[name] -= 1
                return ast.copy_location(ast.Assign([second.target], total), second)
            case ast.Assign([ast.Name()]) | ast.Return(ast.expr()):
                return second if self._put(value, name, second) else None
        return None

    def _put(self, value: ast.expr, name: str, statement: ast.Assign | ast.Return) -> bool:
        """Put the value where the calls of a statement begin with that variable, if they do."""
        links, first = self._applied(cast(ast.expr, statement.value), name)
        uses = [node for node in ast.walk(statement) if isinstance(node, ast.Name)]
        own = sum(node.id == name for node in uses)
        is_written = isinstance(statement, ast.Assign) and uses[0].id == name
        is_first = bool(links) and isinstance(first, ast.Name) and first.id == name
        if not is_first or own != 1 + is_written or not (is_written or self._uses[name] == 2):
            return False
        self._uses[name] -= 2
        node = links[-1].node
        if isinstance(node, ast.Call):
            node.args = [value]
        elif node.left is first:
            node.left = value
        else:
            node.right = value
        return True

    def visit_For(self, node: ast.For) -> ast.AST:  # noqa: N802 - of ast's
        loop = self._loop(node)
        # What a loop leaves in its variable may be used after it.
        if not loop or self._uses[loop.item] != 2 * self._loops[loop.item]:
            return self.generic_visit(node)
        self.nests.append(Nest((loop.path,), each=True))
        layers = ast.ListComp(loop.call.func, [ast.comprehension(node.target, node.iter, [], 0)])
        reverse = ast.Slice(step=ast.UnaryOp(ast.USub(), ast.Constant(1)))
        last_first = ast.Starred(ast.Subscript(layers, reverse, ast.Load()), ast.Load())
        assignment = ast.Assign(loop.targets, _call([last_first, *loop.call.args], loop.call))
        return ast.fix_missing_locations(ast.copy_location(assignment, node))

    def _loop(self, node: ast.For) -> _Loop | None:
        match node:
            case ast.For(
                target=ast.Name(item),
                body=[
                    ast.Assign(
                        targets=[ast.Name(x)] as targets,
                        value=ast.Call(args=[ast.Name(argument)], keywords=[]) as call,
                    )
                ],
                orelse=[],
            ) if x == argument != item and {x, item} <= self._own:
                path = self._path(_looped(node.iter, item, call.func))
                return _Loop(item, targets, call, path) if path else None
        return None

    def _path(self, node: ast.AST | None) -> Path:
        """The names of a dotted name that is none of a local variable."""
        names = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in self._locals:
            return ()
        return (node.id, *reversed(names))


def _blocks(nodes: Iterable[ast.AST]) -> Iterator[list[ast.stmt]]:
    """The lists of statements below some, inner ones first."""
    for node in nodes:
        for value in vars(node).values():
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield from _blocks(value)
                yield value


def _operation(sign: str, node: ast.BinOp, inner: ast.expr, other: ast.expr) -> _Link:
    """One of ``clsd_fast._accelerate.sequences.OPERATIONS``."""
    given = ast.Tuple([ast.Constant(sign), other], ast.Load())
    return _Link((sign,), given, node, inner)


def _looped(iterated: ast.expr, item: str, called: ast.expr) -> ast.expr | None:
    """The list each of whose items is called."""
    match iterated, called:
        case _, ast.Name(name) if name == item:
            return iterated
        case (
            ast.Call(
                func=ast.Name("range"),
                args=[ast.Call(func=ast.Name("len"), args=[layers])]
                | [ast.Constant(0), ast.Call(func=ast.Name("len"), args=[layers])],
                keywords=[],
            ),
            ast.Subscript(indexed, ast.Name(name)),
        ) if name == item and ast.dump(layers) == ast.dump(indexed):
            return layers
    return None


def _call(arguments: list[ast.expr], like: ast.AST) -> ast.Call:
    called = ast.Call(ast.Name(_NAME, ast.Load()), arguments, [])
    return ast.fix_missing_locations(ast.copy_location(called, like))
