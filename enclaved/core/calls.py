"""From a call to a job and how the guest should run it: tools, timeouts, contexts, terminals and retention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from enclaved.agent.handle import RunOptions
from enclaved.core.policy import check_context_name, check_execution_id, execution_timeout, output_limit
from enclaved.core.quotas import Quotas
from enclaved.core.record import SandboxRecord
from enclaved.errors import InvalidRequest, PolicyDenied, ToolNotFound
from enclaved.model import CommandJob, FileJob, Job, PythonJob, Retention, ToolCall
from enclaved.tools.registry import ToolRegistry

KEEP_LAST_DEFAULT_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Decided:
    """A call that makes sense in its sandbox."""

    tool: str
    job: Job
    options: RunOptions


class Calls:
    """Decides what a call means, without starting it."""

    def __init__(self, tools: ToolRegistry, quotas: Quotas | None = None) -> None:
        self._tools, self._quotas = tools, quotas

    def admit(self, call: ToolCall, record: SandboxRecord) -> Decided:
        """Decides all of a call that is to start now, and counts it. Raises `LimitReached` too."""
        decided = self.decide(call, record)
        if self._quotas is not None:
            self._quotas.take_execution(record)
        return decided

    def decide(self, call: ToolCall, record: SandboxRecord) -> Decided:
        """Decides all of a call. Raises `InvalidRequest`, `ToolNotFound`, `PolicyDenied`."""
        if call.execution_id:
            check_execution_id(call.execution_id)
        tool = self._enabled(call.tool, record)
        prepared = self._tools.prepare(call.tool, call.parameters, self._options(tool, record))
        job = _in_context(prepared.job, call.context)
        if call.terminal is not None:
            _check_terminal(job)
        options = RunOptions(
            timeout_s=execution_timeout(call.timeout_s, prepared.timeout_s, record.spec),
            output_limit_bytes=_least(output_limit(call.output_limit_bytes, record.spec), prepared.output_limit_bytes),
            stdin=call.stdin or call.terminal is not None,
            merge_stderr=call.merge_stderr,
            idle_timeout_s=call.idle_timeout_s,
            terminal=call.terminal,
            keep_last_bytes=_keep_last_bytes(call),
        )
        return Decided(prepared.tool_name, job, options)

    def _options(self, tool: str, record: SandboxRecord) -> Mapping[str, Any]:
        found = self._tools.options_in(tool, record.spec.tools)
        return {**found, **(record.spec.command_options or {})} if self._tools.is_internal(tool) else found

    def _enabled(self, name: str, record: SandboxRecord) -> str:
        if self._tools.is_internal(name):
            if record.spec.command_options is None:
                text = "the role of this sandbox does not grant shell_executor, and so no execute_command"
                raise PolicyDenied("tools", "tool", text)
            return name
        enabled = record.spec.tools
        try:
            tool = self._tools.canonical(name)
        except ToolNotFound:
            tool = ""
        if not tool or (enabled is not None and tool not in enabled):
            raise ToolNotFound(name[:100], tuple(sorted(enabled if enabled is not None else self._tools.names())))
        return tool


def _least(*limits: int | None) -> int | None:
    """The tightest of limits that may be there or not."""
    return min((limit for limit in limits if limit is not None), default=None)


def _in_context(job: Job, name: str) -> Job:
    """Sends a job to the context that the call names."""
    if not name:
        return job
    check_context_name(name, "context")
    if not isinstance(job, PythonJob):
        raise InvalidRequest.of("context", "is for tools that run in one, like python_executor; leave it out")
    if job.context is None:
        raise InvalidRequest.of(
            "context", "does not go with `isolated: true`, which runs in none; leave one of them out"
        )
    return replace(job, context=name)


def _check_terminal(job: Job) -> None:
    match job:
        case PythonJob(context=str()):
            hint = "use `isolated: true`, or shell_executor"
            raise InvalidRequest.of("terminal", f"a context has none; {hint}")
        case FileJob():
            raise InvalidRequest.of("terminal", "is for commands and for Python that runs isolated; leave it out")
        case PythonJob() | CommandJob():
            return


def _keep_last_bytes(call: ToolCall) -> int | None:
    retention = call.retention or (Retention.KEEP_LAST if call.detach else Retention.UNTIL_ACK)
    if retention is Retention.UNTIL_ACK:
        return None
    return call.keep_last_bytes if call.keep_last_bytes is not None else KEEP_LAST_DEFAULT_BYTES
