"""Pools that the operator defines: the tables ``[[pools]]`` of the configuration file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from enclaved.core.policy import check_id
from enclaved.core.pool_plans import check_plan
from enclaved.errors import InvalidRequest
from enclaved.model import POOL_REFILL_PER_S, PoolPlan, SandboxRequest


class PoolSettings(BaseModel):
    """One pool. What is not set of its sandboxes is as for a sandbox whose caller does not set it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(description="Its id. Matches ^[a-z0-9][a-z0-9_-]{0,62}$.")
    size: int = Field(description="Members, 1 to 100.")
    image: str | None = Field(None, description="Image of its sandboxes.")
    memory_limit_bytes: int | None = Field(None, description="Memory of each.")
    cpu_limit: float | None = Field(None, description="CPU time per wall time of each, in cores.")
    pids_limit: int | None = Field(None, description="Processes and threads of each.")
    working_dir: str | None = Field(None, description="Working directory of each.")
    working_dir_size_bytes: int | None = Field(None, description="Room in the working directory of each.")
    tmp_size_bytes: int | None = Field(None, description="Room in /tmp of each.")
    env_vars: dict[str, str] = Field({}, description="Environment of programs.")
    tools: list[str] | None = Field(None, description="Tools that are enabled; without it, all.")
    timeout_s: float | None = Field(None, description="Timeout of executions that name none.")
    ttl_s: float | None = Field(None, description="Time to live of each, and of one that is claimed.")
    labels: dict[str, str] = Field({}, description="Labels of each.")
    contexts: list[str] = Field([], description="Contexts that are open when a member is lent.")
    preload: list[str] = Field([], description="Modules that are imported in these contexts; in `default` without any.")
    member_age_max_s: float | None = Field(None, description="Age at which a member is replaced ahead of demand.")
    refill_per_s: float = Field(POOL_REFILL_PER_S, description="Members made in a second at most in place of others.")

    def plan(self) -> PoolPlan:
        """What the pool is to be."""
        return PoolPlan(
            size=self.size,
            request=SandboxRequest(
                image=self.image,
                memory_limit_bytes=self.memory_limit_bytes,
                cpu_limit=self.cpu_limit,
                pids_limit=self.pids_limit,
                working_dir=self.working_dir,
                working_dir_size_bytes=self.working_dir_size_bytes,
                tmp_size_bytes=self.tmp_size_bytes,
                env_vars=self.env_vars,
                tools=None if self.tools is None else {name: {} for name in self.tools},
                timeout_s=self.timeout_s,
                ttl_s=self.ttl_s,
            ),
            labels=self.labels,
            contexts=tuple(self.contexts),
            preload=tuple(self.preload),
            member_age_max_s=self.member_age_max_s,
            refill_per_s=self.refill_per_s,
        )


def read_pool(table: object, taken: Mapping[str, Any]) -> tuple[PoolSettings | None, list[tuple[str, str]]]:
    """Reads one table; ``taken`` has the ids of those before it. Returns it, or what is wrong, by key."""
    try:
        found = PoolSettings.model_validate(table)
    except ValidationError as error:
        problems = [(".".join(map(str, detail["loc"])), detail["msg"]) for detail in error.errors()]
        return None, [(key or "pool", text) for key, text in problems]
    if found.id in taken:
        return None, [("id", f"names {found.id!r} a second time")]
    try:
        check_id(found.id, "id")
        check_plan(found.plan())
    except InvalidRequest as error:
        return None, [(violation.field, violation.description) for violation in error.violations]
    return found, []
