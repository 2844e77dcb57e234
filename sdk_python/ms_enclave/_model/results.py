"""The documented answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from ms_enclave._model.enums import ExecutionStatus, SandboxStatus, SandboxType


class SandboxInfo(BaseModel):
    """A sandbox at one moment."""

    id: str = Field(description="Its id")
    status: SandboxStatus = Field(description="Where it is in its life")
    type: SandboxType = Field(description="What kind of environment it is")
    config: dict[str, Any] = Field(
        default_factory=dict, description="What it really has: defaults filled in, lowered where the policy lowers them"
    )
    created_at: datetime = Field(default_factory=datetime.now, description="When it was made, in local time")
    updated_at: datetime = Field(default_factory=datetime.now, description="When its state last changed, in local time")
    metadata: dict[str, Any] = Field(default_factory=dict, description="What else the daemon says about it")
    available_tools: dict[str, Any] = Field(default_factory=dict, description="Its tools: name -> schema")


class ExecutionResult(BaseModel):
    """What every result has."""

    status: ExecutionStatus = Field(description="How it ended, in one word")
    execution_time: float | None = Field(default=None, description="Seconds that it ran, waiting not counted")
    timestamp: datetime = Field(default_factory=datetime.now, description="When it ended, in local time")

    @property
    def success(self) -> bool:
        """Whether it did what it was asked to do."""
        return self.status is ExecutionStatus.SUCCESS


class ToolResult(ExecutionResult):
    """What became of one call of a tool."""

    tool_name: str = Field(description="The tool, as the caller named it")
    output: Any = Field(default=None, description="Its standard output, as text; for a tool of your own its answer")
    metadata: dict[str, Any] = Field(
        default_factory=dict,
        description="verdict, exit_code, signal, stderr, truncated, execution_id, phases, and what else is known",
    )
    error: str | None = Field(
        default=None,
        description="The text of standard error if there is any, also on success; the reason on failure; else None",
    )


class CommandResult(ExecutionResult):
    """What became of one command."""

    command: str | list[str] = Field(description="The command, as the caller gave it")
    exit_code: int = Field(description="Its exit code; 128 + N if signal N ended it; -1 if it did not end by itself")
    stdout: str | None = Field(default=None, description="Its standard output")
    stderr: str | None = Field(
        default=None, description="Its standard error; the reason on a failure that left none, such as a timeout"
    )


class HealthCheckResult(BaseModel):
    """How a daemon is."""

    healthy: bool = Field(description="Whether it can make sandboxes: its container engine answers")
    version: str = Field(description="Its version")
    uptime: float = Field(description="Seconds since it started")
    active_sandboxes: int = Field(description="Sandboxes that are not stopped")
    system_info: dict[str, Any] = Field(default_factory=dict, description="The engine and other facts")


@dataclass(frozen=True, slots=True)
class ToolInfo:
    """A tool of the daemon as callers see it."""

    name: str
    aliases: tuple[str, ...]
    description: str
    schema: Mapping[str, Any]
    """The tool in the form of OpenAI's function calling."""
