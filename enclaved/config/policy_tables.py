"""What the tables of a policy file look like, and in which line each key stands."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

_Bytes = Annotated[int, Field(gt=0)]
_Count = Annotated[int, Field(gt=0)]
_CountOrZero = Annotated[int, Field(ge=0)]
_Cores = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_SecondsOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Texts = list[Annotated[str, Field(min_length=1, max_length=512)]]

_TABLE = re.compile(r"\s*(\[{1,2})\s*([^\]#]+?)\s*\]{1,2}")
_KEY = re.compile(r"""\s*((?:[\w.-]|"[^"]*"|'[^']*')+)\s*=""")
_QUOTES: Final = str.maketrans("", "", "\"' ")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class VolumeTable(_Table):
    """A host directory that may be mounted, with all below it."""

    path: str = Field(description="Absolute path, or `.`: where the program works that embeds the daemon.")
    mode: Literal["ro", "rw"] = Field("ro", description="`rw`: programs may write to it.")
    name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,62})?$",
        description="Callers say this instead of the path, and cannot say the path.",
    )


class ToolTable(_Table):
    """What may be said about one tool."""

    allowed: _Texts | None = Field(None, description="Options that callers may set; without it, all.")
    forced: dict[str, Any] | None = Field(None, description="Options that hold whatever a caller sets.")


class RoleTable(_Table):
    """What a role says. What it does not say is as in the role that it extends."""

    extends: str | None = Field(None, description="The role whose rules hold where this one says nothing.")
    scopes: list[Literal["read", "run", "create", "admin"]] | None = Field(
        None, description="What sort of calls are open: look, run code, make and change sandboxes, scrape metrics."
    )
    users: _Texts | None = Field(None, description="Who has this role: `KIND` or `KIND:NAME`, with `*` in the name.")
    memory_default_bytes: _Bytes | None = Field(None, description="Memory of a sandbox.")
    memory_max_bytes: _Bytes | None = Field(None, description="Most memory of a sandbox.")
    cpu_default: _Cores | None = Field(None, description="CPU time per wall time of a sandbox, in cores.")
    cpu_max: _Cores | None = Field(None, description="Most CPU time per wall time of a sandbox, in cores.")
    pids_default: _Count | None = Field(None, description="Processes and threads of a sandbox.")
    pids_max: _Count | None = Field(None, description="Most processes and threads of a sandbox.")
    working_dir_size_default_bytes: _CountOrZero | None = Field(
        None, description="Room in the working directory, as far as memory allows it."
    )
    tmp_size_default_bytes: _CountOrZero | None = Field(None, description="Room in /tmp, as far as memory allows it.")
    working_dir_size_max_bytes: _CountOrZero | None = Field(None, description="Most room in the working directory.")
    tmp_size_max_bytes: _CountOrZero | None = Field(None, description="Most room in /tmp.")
    timeout_default_s: _Seconds | None = Field(None, description="Timeout of an execution.")
    timeout_max_s: _Seconds | None = Field(None, description="Longest timeout of an execution.")
    ttl_default_s: _Seconds | None = Field(None, description="Time to live of a sandbox.")
    ttl_max_s: _Seconds | None = Field(None, description="Longest time to live of a sandbox.")
    idle_timeout_default_s: _SecondsOrZero | None = Field(None, description="Idle timeout of a sandbox.")
    idle_timeout_max_s: _SecondsOrZero | None = Field(None, description="Longest idle timeout of a sandbox.")
    output_default_bytes: _CountOrZero | None = Field(None, description="Output of an execution; then it is killed.")
    output_max_bytes: _CountOrZero | None = Field(None, description="Most output of an execution.")
    sandboxes_max: _Count | None = Field(None, description="Sandboxes at once of one identity.")
    executions_max: _CountOrZero | None = Field(None, description="Executions at once of one identity.")
    executions_per_sandbox_max: _Count | None = Field(None, description="Executions at once in one sandbox.")
    creates_per_minute: _CountOrZero | None = Field(None, description="Sandboxes that one identity makes in a minute.")
    executions_per_minute: _CountOrZero | None = Field(None, description="Executions that one identity starts.")
    kill_at_pids_limit: bool | None = Field(None, description="Whether meeting the limit of processes kills.")
    image_default: str | None = Field(None, min_length=1, description="Image of a sandbox whose caller names none.")
    images: _Texts | None = Field(None, description="Images, with `*` and `**`, or pinned: `NAME@sha256:DIGEST`.")
    images_by_digest: bool | None = Field(None, description="Whether images are taken by digest only.")
    may_pull: bool | None = Field(None, description="Whether images may be pulled.")
    runtime_classes: _Texts | None = Field(None, description="Runtime classes; the first is what nobody asks for.")
    networks: list[Literal["none", "bridge"]] | None = Field(None, description="Networks.")
    volumes: list[VolumeTable] | None = Field(None, description="Host directories.")
    ports: list[int | str] | None = Field(None, description='Host ports: 8080, "8000-8999", or "any" of the engine\'s.')
    extra_hosts: bool | None = Field(None, description="Whether lines may be added to /etc/hosts.")
    command: bool | None = Field(None, description="Whether a command may be started with a sandbox.")
    env_names: _Texts | None = Field(None, description="Names of environment variables, with `*`.")
    tools: _Texts | None = Field(None, description="Tools, with `*`.")
    tool_options: dict[str, ToolTable] | None = Field(None, description="What may be said about each tool.")


class PolicyTables(_Table):
    """A whole policy file."""

    roles: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")], RoleTable] = {}


def lines_of(text: str) -> dict[str, int]:
    """Finds the line of every table and key, by its dotted name, for a message about it."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if match := _TABLE.match(line):
            table = match[2].translate(_QUOTES)
            parts = table.split(".")
            for count in range(len(parts)):
                found.setdefault(".".join(parts[: count + 1]), number)
        elif match := _KEY.match(line):
            key = match[1].translate(_QUOTES)
            found.setdefault(f"{table}.{key}" if table else key, number)
    return found


def line_near(lines: dict[str, int], key: str) -> int:
    """Finds the line of a key, or of the nearest table round it; 0: none."""
    while key:
        if key in lines:
            return lines[key]
        key = key.rpartition(".")[0]
    return 0
