"""YAML to plain values, with what is text kept as it was written."""

from collections.abc import Callable, Iterator
from typing import Any

import yaml

from .errors import UserError, shorten

NULL, TEXT = "tag:yaml.org,2002:null", "tag:yaml.org,2002:str"
# A mapping may be aliased in itself, or many times over.
DEEPEST = 2
# YAML's own errors, and what PyYAML lets through of explicit tags, dates and nested brackets.
ERRORS = (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError)


def parse(
    content: str | bytes, is_text: Callable[[str], bool], source: str, prefix: str = ""
) -> Any:
    """The value of one YAML document in UTF-8 or UTF-16.

    Args:
        content: the document.
        is_text: whether what stands at a dotted key is text: ``2020``, ``1e3`` and ``no`` are then
            these letters. Null stays null.
        source: what messages call the document.
        prefix: dotted key of the value.

    Raises:
        UserError: if it is no YAML, or a key stands there twice.
    """
    loader = None
    try:
        loader = yaml.SafeLoader(content)
        node = loader.get_single_node()
        if node is None:
            return None
        for key, value in _leaves(node, prefix, source):
            if is_text(key):
                _keep_text(value)
        return loader.construct_document(node)
    except ERRORS as error:
        reason = shorten(" ".join(str(error).split()), 200)[1:-1]
        raise UserError(f"config: expected YAML in {source}, got {reason}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _leaves(
    node: yaml.Node, prefix: str, source: str, depth: int = 0
) -> Iterator[tuple[str, yaml.Node]]:
    """Each value that is no mapping, under its dotted key, as deep as sections go."""
    if not isinstance(node, yaml.MappingNode) or depth > DEEPEST:
        yield prefix, node
        return
    seen = set()
    for name, value in node.value:
        key = f"{prefix}.{name.value}" if prefix else str(name.value)
        if key in seen:
            raise UserError(f"config: expected {shorten(key)} once in {source}, got it twice")
        seen.add(key)
        yield from _leaves(value, key, source, depth + 1)


def _keep_text(node: yaml.Node) -> None:
    for scalar in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        if isinstance(scalar, yaml.ScalarNode) and scalar.tag != NULL:
            scalar.tag = TEXT


def dump_scalar(value: Any) -> str:
    """A value without mappings as one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
