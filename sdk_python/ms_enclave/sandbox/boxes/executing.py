"""Sandboxes whose tools run at a daemon: started, followed, left and found again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final

from ms_enclave._model import Event, ExecutionInfo, ExecutionOptions
from ms_enclave._transports.base import ToolCall, Transport
from ms_enclave.errors import InvalidRequest
from ms_enclave.sandbox.boxes.base import Sandbox
from ms_enclave.sandbox.executions import Execution, merged
from ms_enclave.sandbox.tools.sandbox_tools import SandboxTool

WAIT_S_MAX: Final = 30 * 86400.0
"""The longest wait for a program. Whether it may run so long is the daemon's to say; gRPC takes more for the past."""


class ExecutingSandbox(Sandbox):
    """A sandbox that has a daemon to run its tools."""

    async def running_transport(self) -> Transport:
        """Returns the way to the daemon. Raises `WrongState` if the sandbox does not run."""
        raise self._not_running()

    async def transport(self) -> Transport | None:
        return await self.running_transport()

    async def stream(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        options: ExecutionOptions | None = None,
        **given: Any,
    ) -> AsyncGenerator[Event, None]:
        """Runs one of the daemon's tools and yields what happens while it happens, ending with `Finished`.

        The parameters of the tool come as one mapping or as keywords: ``stream("python_executor", code="print(1)")``.
        Lost connections and restarted daemons do not show, except as time. Leaving the loop early kills what runs,
        unless it is detached; use ``contextlib.aclosing`` to have that done at once. Raises as `execute_tool`, and
        also `InvalidRequest` for empty code, `ExecutionUnreachable`.
        """
        transport = await self.running_transport()
        call = self._daemon_call(tool_name, merged(parameters, given), options)
        async with contextlib.aclosing(transport.stream(call)) as events:
            async for event in events:
                yield event

    async def start_execution(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        options: ExecutionOptions | None = None,
        **given: Any,
    ) -> Execution:
        transport = await self.running_transport()
        return await Execution.start(
            transport.executions, self._daemon_call(tool_name, merged(parameters, given), options)
        )

    async def get_execution(self, execution_id: str) -> Execution:
        calls = (await self.running_transport()).executions
        await calls.get(execution_id, self.id)
        return Execution(calls, calls.attach(execution_id, self.id, {}), self.id)

    async def list_executions(self, *, running: bool | None = None) -> list[ExecutionInfo]:
        return await (await self.running_transport()).executions.list(self.id, running=running)

    def call(self, tool_name: str, parameters: Mapping[str, Any], options: ExecutionOptions | None = None) -> ToolCall:
        """Says what the daemon is asked to run, and how long that may take as far as we know."""
        wanted = ExecutionOptions() if options is None else options
        if not isinstance(wanted, ExecutionOptions):
            raise InvalidRequest(f"options: must be ExecutionOptions, and not {type(wanted).__name__}")
        timeout_s: object = wanted.timeout
        if timeout_s is None:
            of_tool = self.config.tools_config.get(tool_name, {})
            timeout_s = next(
                (given["timeout"] for given in (parameters, of_tool) if "timeout" in given), self.config.timeout
            )
        known = isinstance(timeout_s, int | float) and timeout_s > 0
        wait_s = float(min(timeout_s, WAIT_S_MAX)) if known and isinstance(timeout_s, int | float) else None
        return ToolCall(self.id, tool_name, parameters, wait_s, options=wanted)

    def _daemon_call(self, tool_name: str, parameters: Mapping[str, Any], options: ExecutionOptions | None) -> ToolCall:
        tool = self.get_tool(tool_name)
        if not isinstance(tool, SandboxTool):
            raise self._no_tool(tool_name)
        return self.call(tool.name, parameters, options)
