"""The guest meets the Python of the image, not ours: it must stay within Python 3.8."""

from __future__ import annotations

import ast
from pathlib import Path

GUEST = Path(__file__).resolve().parents[2] / "enclaved" / "agent" / "guest.py"

# What Python 3.9 and later added to the modules and types that the guest uses.
NEWER_ATTRIBUTES = {
    "bit_count",
    "pairwise",
    "pidfd_open",
    "pidfd_send_signal",
    "randbytes",
    "removeprefix",
    "removesuffix",
    "send_fds",
    "recv_fds",
    "to_thread",
    "waitstatus_to_exitcode",
}
BUILT_IN_GENERICS = {"dict", "frozenset", "list", "set", "tuple", "type"}


def test_the_guest_parses_as_python_3_8() -> None:
    ast.parse(GUEST.read_text(), filename=str(GUEST), feature_version=(3, 8))


def test_the_guest_uses_nothing_that_python_3_8_lacks() -> None:
    tree = ast.parse(GUEST.read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert used & NEWER_ATTRIBUTES == set()


def test_the_guest_subscripts_no_built_in_type_outside_annotations() -> None:
    """``list[int]`` is an error when it is evaluated; an annotation is not, by ``from __future__``."""
    tree = ast.parse(GUEST.read_text())
    annotations = {
        id(inner)
        for node in ast.walk(tree)
        for annotation in (getattr(node, "annotation", None), getattr(node, "returns", None))
        if annotation is not None
        for inner in ast.walk(annotation)
    }
    evaluated = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and id(node) not in annotations
        if node.value.id in BUILT_IN_GENERICS
    ]
    assert evaluated == []
