"""docs/python.md names what there is: every field, result and method, with the defaults of the code."""

from __future__ import annotations

import ast
import builtins
import importlib
import re

from ms_enclave import errors
from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType, ToolResult
from ms_enclave.sandbox.server import create_server

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "python.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| `")]


def names(cell: str) -> list[str]:
    return re.findall(r"`([A-Za-z_.]+)`", cell)


def test_every_place_to_import_from_has_the_names_that_are_listed():
    modules = {row[0].strip("`"): names(row[1]) for row in ROWS if row[0].startswith("`ms_enclave.")}
    assert len(modules) == 8
    for module, listed in modules.items():
        found = importlib.import_module(module)
        assert [name for name in listed if not hasattr(found, name)] == []


def test_every_field_of_a_configuration_is_listed_with_its_default():
    fields = DockerSandboxConfig.model_fields
    rows = [(row[0].strip("`"), row[1].strip("`")) for row in ROWS]
    listed = {name: ast.literal_eval(default) for name, default in rows if name in fields}
    assert listed == DockerSandboxConfig().model_dump()


def test_every_field_of_a_result_is_listed():
    section = PAGE.partition("| field of a `ToolResult` |")[2].partition("\n\n")[0]
    assert set(ToolResult.model_fields) <= set(names(section))


def test_every_method_that_is_listed_is_there():
    owners = {
        "sandbox": SandboxFactory.create_sandbox(SandboxType.DOCKER),
        "manager": LocalSandboxManager(),
        "server": create_server(),
    }
    called = re.findall(r"\b(sandbox|manager|server)\.(\w+)\(", PAGE)
    assert len(called) > 30
    assert [f"{owner}.{method}" for owner, method in called if not hasattr(owners[owner], method)] == []


def test_errors_are_listed_with_the_built_in_classes_that_they_are():
    rows = {name: names(row[1]) for row in ROWS if len(row) == 3 for name in names(row[0]) if hasattr(errors, name)}
    assert len(rows) > 15
    for name, classes in rows.items():
        for one in classes:
            assert issubclass(getattr(errors, name), getattr(builtins, one)), name
