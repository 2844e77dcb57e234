"""Runtime classes that the operator defines: the tables ``[[runtime_classes]]`` of the configuration file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from enclaved.model import RUNC, Channel, RuntimeClass

CLASSES_MAX: Final = 16


class RuntimeClassSettings(BaseModel):
    """One class of isolation that sandboxes can be made with, beside the engine's own."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = Field(pattern="^[a-z0-9][a-z0-9_-]{0,62}$", description="What callers and roles call it.")
    engine_runtime: str = Field(
        "", pattern="^[A-Za-z0-9._-]{0,128}$", description="What the engine calls its runtime; empty: the same."
    )
    channel: Literal["socket", "attach"] = Field(
        "socket",
        description="How its sandboxes are reached: over a mounted socket, which gVisor lets through with "
        "--host-uds=open, or by attaching to them. Under gVisor programs could then write to the guest's channel.",
    )
    pids_extra: int = Field(
        4096,
        ge=0,
        le=1_000_000,
        description="Processes and threads that the runtime itself may have on the host in each sandbox, beside the "
        "sandbox's own limit: gVisor's kernel needs some for each program.",
    )

    def runtime_class(self) -> RuntimeClass:
        """What it is for the core."""
        return RuntimeClass(self.name, self.engine_runtime or self.name, Channel(self.channel), self.pids_extra)


def read_runtime_class(
    table: object, taken: Mapping[str, Any]
) -> tuple[RuntimeClassSettings | None, list[tuple[str, str]]]:
    """Reads one table; ``taken`` has the names of those before it. Returns it, or what is wrong, by key."""
    try:
        found = RuntimeClassSettings.model_validate(table)
    except ValidationError as error:
        problems = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors()]
        return None, [(key or "runtime_classes", text) for key, text in problems]
    problems = list(_problems(found, taken))
    return (None if problems else found), problems


def _problems(found: RuntimeClassSettings, taken: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if found.name == RUNC:
        yield "name", f"may not be {RUNC!r}, which means the engine's own runtime"
    elif found.name in taken:
        yield "name", f"names {found.name!r} a second time"
    elif len(taken) >= CLASSES_MAX:
        yield "name", f"is one too many; at most {CLASSES_MAX} classes are possible"
