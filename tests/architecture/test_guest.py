"""The guest meets the Python of the image, not ours: it must stay within Python 3.8, and small in memory."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "enclaved" / "agent" / "guest"
MODULES = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}

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

# What PID 1 and the template may both have in memory.
SHARED = {"claims", "handover", "libc", "limits", "loader", "main", "procfs", "traces"}


def imported_by(module: str) -> set[str]:
    """The modules of ours that one loads when it is imported: not those for type checkers, nor in functions."""
    return {
        node.module
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, ast.ImportFrom) and node.level and node.module
    }


def loaded_with(module: str) -> set[str]:
    """A module, and all that it loads."""
    found: set[str] = set()
    waiting = {module}
    while waiting:
        found |= waiting
        waiting = {inner for each in waiting for inner in imported_by(each)} - found
    return found


@pytest.mark.parametrize("module", MODULES)
def test_the_guest_parses_as_python_3_8(module: str) -> None:
    ast.parse(MODULES[module].read_text(), filename=module, feature_version=(3, 8))


@pytest.mark.parametrize("module", MODULES)
def test_the_guest_uses_nothing_that_python_3_8_lacks(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text())
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert used & NEWER_ATTRIBUTES == set()


@pytest.mark.parametrize("module", MODULES)
def test_the_guest_subscripts_no_built_in_type_outside_annotations(module: str) -> None:
    """``list[int]`` is an error when it is evaluated; an annotation is not, by ``from __future__``."""
    tree = ast.parse(MODULES[module].read_text())
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


@pytest.mark.parametrize("module", MODULES.keys() - {"__init__"})
def test_the_guest_names_types_for_type_checkers_only(module: str) -> None:
    """The typing module would cost memory in every sandbox."""
    names = {
        alias.name
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in [*node.names, ast.alias(getattr(node, "module", None) or "")]
    }
    assert "typing" not in names


def test_pid_1_and_the_template_load_only_their_own_side() -> None:
    assert loaded_with("guest") & loaded_with("template") <= SHARED


def test_a_module_of_a_child_is_loaded_before_the_template_forks() -> None:
    """Afterwards it could not be: the template has closed the file with the modules."""
    ours = loaded_with("template")
    inner = {
        f"{name} line {node.lineno}"
        for name in ours
        for node in ast.walk(ast.parse(MODULES[name].read_text()))
        if isinstance(node, ast.ImportFrom) and node.level and node.col_offset and not _is_for_checkers(name, node)
    }
    assert inner == set()


def _is_for_checkers(module: str, wanted: ast.ImportFrom) -> bool:
    return any(
        node.lineno < wanted.lineno <= (node.end_lineno or 0)
        for node in ast.parse(MODULES[module].read_text()).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
