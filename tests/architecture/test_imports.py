"""The import arrows: who may import whom. A new module needs a room here, and a new arrow a line that can be argued."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"enclaved": ROOT / "enclaved", "ms_enclave": ROOT / "sdk_python" / "ms_enclave"}

# Each room, and what of ours it may import besides itself and the rooms inside it. The longest name that fits a module
# is its room; what fits the name of a package only (a new module at the top) may import nothing.
ARROWS: dict[str, tuple[str, ...]] = {
    "enclaved": (),
    "enclaved.__main__": ("enclaved.cli",),
    "enclaved.cli": (
        "enclaved.config",
        "enclaved.core.policy",
        "enclaved.core.tokens",
        "enclaved.daemon",
        "enclaved.doctor",
        "enclaved.errors",
        "enclaved.log",
        "enclaved.model",
        "ms_enclave.__version__",
    ),
    "enclaved.doctor": (
        "enclaved.config",
        "enclaved.core.tokens",
        "enclaved.daemon",
        "enclaved.errors",
        "enclaved.log",
        "enclaved.model",
        "ms_enclave.__version__",
        "ms_enclave.v1",
    ),
    "enclaved.daemon": (
        "enclaved.agent",
        "enclaved.config",
        "enclaved.core",
        "enclaved.errors",
        "enclaved.gateway",
        "enclaved.log",
        "enclaved.metrics",
        "enclaved.model",
        "enclaved.runtime",
        "enclaved.services",
        "enclaved.tools",
        "ms_enclave.__version__",
    ),
    "enclaved.services": (
        "enclaved.core",
        "enclaved.errors",
        "enclaved.log",
        "enclaved.metrics",
        "enclaved.model",
        "enclaved.status",
        "enclaved.strict_json",
        "ms_enclave.v1",
    ),
    "enclaved.gateway": (
        "enclaved.core",
        "enclaved.errors",
        "enclaved.log",
        "enclaved.metrics",
        "enclaved.model",
        "enclaved.status",
        "enclaved.strict_json",
        "ms_enclave.__version__",
        "ms_enclave.v1",
    ),
    "enclaved.core": (
        "enclaved.agent",
        "enclaved.errors",
        "enclaved.metrics",
        "enclaved.model",
        "enclaved.runtime.base",
        "enclaved.runtime.inspection",
        "enclaved.tools.base",
        "enclaved.tools.registry",
    ),
    "enclaved.core.policy": ("enclaved.core.spec_fields", "enclaved.core.tmpfs", "enclaved.errors", "enclaved.model"),
    "enclaved.tools": ("enclaved.errors", "enclaved.model"),
    "enclaved.agent": ("enclaved.errors", "enclaved.model", "enclaved.runtime.base"),
    "enclaved.agent.guest": (),
    "enclaved.runtime.base": ("enclaved.errors", "enclaved.model"),
    "enclaved.runtime.inspection": ("enclaved.runtime.base",),
    "enclaved.runtime.docker": (
        "enclaved.errors",
        "enclaved.model",
        "enclaved.runtime.base",
        "enclaved.runtime.inspection",
    ),
    "enclaved.core.pool_plans": ("enclaved.core.policy", "enclaved.errors", "enclaved.model"),
    "enclaved.config": ("enclaved.core.policy", "enclaved.core.pool_plans", "enclaved.errors", "enclaved.model"),
    "enclaved.status": ("enclaved.errors", "enclaved.model", "ms_enclave.v1"),
    "enclaved.metrics": ("enclaved.errors", "enclaved.model"),
    "enclaved.log": ("enclaved.errors",),
    "enclaved.errors": ("enclaved.model",),
    "enclaved.model": (),
    "enclaved.strict_json": (),
    # For tests, ours and those of plug-in authors: it may import the product, and nothing imports it.
    "enclaved.testing": ("enclaved", "ms_enclave"),
    "ms_enclave": (),
    "ms_enclave.errors": (),
    "ms_enclave._forks": (),
    "ms_enclave.v1": (),
    "ms_enclave._model": ("ms_enclave.errors",),
    "ms_enclave._status": ("ms_enclave.errors", "ms_enclave.v1"),
    "ms_enclave._convert": ("ms_enclave._model", "ms_enclave.errors", "ms_enclave.v1"),
    "ms_enclave._results": ("ms_enclave._convert", "ms_enclave._model"),
    "ms_enclave._transports": (
        "ms_enclave._forks",
        "ms_enclave._convert",
        "ms_enclave._model",
        "ms_enclave._results",
        "ms_enclave._status",
        "ms_enclave.errors",
        "ms_enclave.v1",
    ),
    "ms_enclave._embedded": ("ms_enclave._forks", "ms_enclave.errors"),
    "ms_enclave.run_server": ("ms_enclave.errors", "ms_enclave.sandbox"),
    "ms_enclave._local": (
        "ms_enclave._embedded",
        "ms_enclave._forks",
        "ms_enclave._transports",
        "ms_enclave.errors",
    ),
    "ms_enclave.cli": (
        "ms_enclave.__version__",
        "ms_enclave._cli",
        "ms_enclave._local",
        "ms_enclave._model",
        "ms_enclave._transports",
        "ms_enclave.errors",
        "ms_enclave.sandbox",
    ),
    "ms_enclave._cli": (
        "ms_enclave._local",
        "ms_enclave._model",
        "ms_enclave._results",
        "ms_enclave._transports",
        "ms_enclave.errors",
        "ms_enclave.sandbox",
    ),
    "ms_enclave.sandbox": (
        "ms_enclave._forks",
        "ms_enclave._embedded",
        "ms_enclave._local",
        "ms_enclave._model",
        "ms_enclave._results",
        "ms_enclave._transports",
        "ms_enclave.errors",
    ),
}

# Libraries that one room wraps, so that the rest of the product does not know them.
FOREIGN: dict[str, tuple[str, ...]] = {
    "aiodocker": ("enclaved.runtime.docker",),
    "prometheus_client": ("enclaved.metrics",),
    "grpc": (
        "enclaved.services",
        "enclaved.daemon",
        "enclaved.doctor",
        "enclaved.status",
        "ms_enclave._transports",
        "ms_enclave.v1",
    ),
    "google": (
        "enclaved.services",
        "enclaved.status",
        "ms_enclave._convert",
        "ms_enclave._status",
        "ms_enclave._transports",
        "ms_enclave.v1",
    ),
    "fastapi": ("enclaved.gateway",),
    "starlette": ("enclaved.gateway",),
    "uvicorn": ("enclaved.gateway",),
    "pydantic": (
        "enclaved.config",
        "enclaved.core.state",
        "enclaved.gateway",
        "enclaved.tools",
        "ms_enclave._cli.wishes",
        "ms_enclave._model",
        "ms_enclave._transports",
        "ms_enclave.sandbox",
    ),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target, as far as it is a module, or a name in one."""

    importer: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.importer} (line {self.line}) imports {self.target}"


def modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


MODULES = dict(modules())


def imports(module: str) -> Iterator[Import]:
    path = MODULES[module]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield Import(module, name if name in MODULES or alias.name == "__version__" else base, node.lineno)


def within(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def room_of(module: str) -> str:
    return max((room for room in ARROWS if within(module, room)), key=len)


def is_allowed(found: Import) -> bool:
    room = room_of(found.importer)
    top = found.target.split(".")[0]
    if top not in PACKAGES:
        return top not in FOREIGN or any(within(found.importer, wrapper) for wrapper in FOREIGN[top])
    if within(found.target, "enclaved.testing") and room != "enclaved.testing":
        return False
    own = found.target == room if room in PACKAGES else within(found.target, room)
    return own or any(within(found.target, arrow) for arrow in ARROWS[room])


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_its_room_may(module: str) -> None:
    assert sorted({str(found) for found in imports(module) if not is_allowed(found)}) == []


def test_the_services_do_not_import_each_other() -> None:
    services = [name for name in MODULES if within(name, "enclaved.services") and name.endswith("_service")]
    assert services
    assert [str(found) for name in services for found in imports(name) if found.target in services] == []


def test_the_guest_imports_the_standard_library_only() -> None:
    guests = [name for name in MODULES if within(name, "enclaved.agent.guest")]
    found = [found for name in guests for found in imports(name) if not within(found.target, "enclaved.agent.guest")]
    assert len(guests) > 1
    assert {found.target.split(".")[0] for found in found} - sys.stdlib_module_names == set()


def test_the_daemon_imports_of_the_guest_the_codecs_the_journal_and_the_limits_only() -> None:
    shared = {f"enclaved.agent.guest.{name}" for name in ("frames", "journal", "limits", "resync")}
    users = [name for name in MODULES if not within(name, "enclaved.agent.guest")]
    used = {found.target for name in users for found in imports(name) if within(found.target, "enclaved.agent.guest")}
    assert used == shared


def test_relative_imports_are_for_the_guest_only() -> None:
    """Its package has another name in a sandbox; everywhere else a module is imported by its full name."""
    relative = {
        name
        for name, path in MODULES.items()
        if name.startswith("enclaved")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    assert {name for name in relative if not within(name, "enclaved.agent.guest")} == set()


def test_every_room_of_the_table_exists() -> None:
    """A room that was renamed or removed leaves no arrow behind."""
    assert [room for room in ARROWS if room not in MODULES] == []


@pytest.mark.parametrize("folder", ["proto", "systemd"])
def test_a_folder_that_shares_its_name_with_a_library_is_no_package(folder: str) -> None:
    """With the checkout first on sys.path, an __init__.py in it would hide the library."""
    assert list((ROOT / folder).rglob("*.py")) == []


@pytest.mark.parametrize(
    ("importer", "target"),
    [
        ("enclaved.core.sandboxes", "aiodocker"),
        ("enclaved.core.sandboxes", "grpc.aio"),
        ("enclaved.core.sandboxes", "enclaved.runtime.docker.driver"),
        ("enclaved.core.policy", "enclaved.core.sandboxes"),
        ("enclaved.services.tool_service", "enclaved.agent.link"),
        ("enclaved.services.tool_service", "ms_enclave.errors"),
        ("enclaved.agent.guest", "enclaved.model"),
        ("enclaved.tools.registry", "enclaved.core.sandboxes"),
        ("enclaved.model", "pydantic"),
        ("enclaved.something_new", "enclaved.core.sandboxes"),
        ("enclaved.daemon", "enclaved.testing.subprocess_runtime"),
        ("ms_enclave.sandbox.boxes", "enclaved.model"),
        ("ms_enclave.sandbox.boxes", "grpc"),
        ("ms_enclave.v1.tool_service_pb2", "ms_enclave.errors"),
    ],
)
def test_an_import_against_the_arrows_is_seen(importer: str, target: str) -> None:
    assert not is_allowed(Import(importer, target, 1))
