"""Persistent interpreters of a sandbox. Variables live as long as their context does."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

from ms_enclave._model import ContextInfo, Event, ExecutionOptions, ToolResult
from ms_enclave._transports.base import ContextCalls
from ms_enclave.errors import NotServed
from ms_enclave.sandbox.executions import Execution

if TYPE_CHECKING:
    from ms_enclave.sandbox.boxes.base import Sandbox

PYTHON = "python_executor"


class Contexts:
    """The contexts of one sandbox: ``sandbox.contexts``. The context "default" opens by itself."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def open(self, name: str) -> Context:
        """Opens a context and starts its interpreter; one that is open is left as it is. At most 16 can be.

        ``name``: letters, digits, ``_`` and ``-``. Raises `InvalidRequest`, `LimitReached`, `WrongState`.
        """
        return Context(self._sandbox, await (await self._calls()).open(self._sandbox.id, name))

    async def list(self) -> list[Context]:
        """Lists those that are open, by name."""
        return [Context(self._sandbox, info) for info in await (await self._calls()).list(self._sandbox.id)]

    async def close(self, name: str) -> None:
        """Ends a context at once; what runs or waits in it is cancelled. Raises `NotFound`."""
        await (await self._calls()).close(self._sandbox.id, name)

    async def reset(self, name: str) -> Context:
        """Gives a context a new interpreter: its variables are gone, what runs or waits in it is cancelled.

        Raises `NotFound`, `LimitReached`.
        """
        return Context(self._sandbox, await (await self._calls()).reset(self._sandbox.id, name))

    async def _calls(self) -> ContextCalls:
        transport = await self._sandbox.transport()
        if transport is None:
            raise NotServed(f"sandboxes of type {self._sandbox.sandbox_type.value} have no contexts")
        return transport.contexts


class Context:
    """One context. ``async with`` closes it at the end."""

    def __init__(self, sandbox: Sandbox, info: ContextInfo) -> None:
        self._sandbox = sandbox
        self.info = info
        """How it was when it was last asked for."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.info.name

    async def execute(
        self, code: str, timeout: float | None = None, *, options: ExecutionOptions | None = None
    ) -> ToolResult:
        """Runs Python in it to its end, after the calls before. Raises as `Sandbox.execute_tool`."""
        return await self._sandbox.execute_tool(PYTHON, _parameters(code, timeout), options=self._in_here(options))

    def stream(
        self, code: str, timeout: float | None = None, *, options: ExecutionOptions | None = None
    ) -> AsyncGenerator[Event, None]:
        """Runs Python in it and yields what happens, as `Sandbox.stream`."""
        return self._sandbox.stream(PYTHON, _parameters(code, timeout), options=self._in_here(options))

    async def start_execution(
        self, code: str, timeout: float | None = None, *, options: ExecutionOptions | None = None
    ) -> Execution:
        """Starts Python in it, as `Sandbox.start_execution`."""
        return await self._sandbox.start_execution(PYTHON, _parameters(code, timeout), options=self._in_here(options))

    async def reset(self) -> None:
        """Gives it a new interpreter; see `Contexts.reset`."""
        self.info = (await self._sandbox.contexts.reset(self.name)).info

    async def close(self) -> None:
        """Ends it at once; see `Contexts.close`."""
        await self._sandbox.contexts.close(self.name)

    async def __aenter__(self) -> Context:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _in_here(self, options: ExecutionOptions | None) -> ExecutionOptions:
        return dataclasses.replace(options or ExecutionOptions(), context=self.name)


def _parameters(code: str, timeout: float | None) -> dict[str, Any]:
    return {"code": code} if timeout is None else {"code": code, "timeout": timeout}
