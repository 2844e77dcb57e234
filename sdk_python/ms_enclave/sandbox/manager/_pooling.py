"""What managers do with pools: sandboxes that are ready before somebody needs one."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from ms_enclave._model.config import DockerSandboxConfig, SandboxConfig, SandboxManagerConfig
from ms_enclave._model.enums import SandboxType
from ms_enclave._model.pools import PoolClaim, PoolOptions, PoolStats
from ms_enclave._model.results import ToolResult
from ms_enclave._transports.base import Transport
from ms_enclave.errors import EnclaveError, InvalidRequest, PoolNotFound
from ms_enclave.sandbox.boxes import DockerSandbox, Sandbox, SandboxFactory

MANAGER_LABEL = "ms-enclave/manager"
"""A label on every sandbox that says which manager made it."""
POOL_TIMEOUT_S_MAX = 30 * 86400.0


class Pooling(abc.ABC):
    """The part of a manager that has a pool."""

    config: SandboxManagerConfig
    _labels: Mapping[str, str]
    _sandboxes: dict[str, Sandbox]
    _pool_initialized: bool
    """Whether there is a pool. Programs of users read it."""
    _pool_ids: list[str]
    _pool_config: SandboxConfig | None

    @abc.abstractmethod
    async def _connect(self) -> Transport:
        """Returns the way to the daemon that keeps the sandboxes."""

    async def initialize_pool(
        self,
        pool_size: int | None = None,
        sandbox_type: SandboxType | str | None = None,
        config: SandboxConfig | Mapping[str, Any] | None = None,
        *,
        options: PoolOptions | None = None,
    ) -> list[str]:
        """Makes sandboxes that wait for `execute_tool_in_pool`, and returns their ids when all run.

        What is not given is taken from the manager's settings (``pool_size``, ``sandbox_config``). ``options``: what is
        warm in them, and for how long they are kept. A pool that exists is left as it is. Raises ``ValueError`` for a
        size below 1, and what `create_sandbox` raises.
        """
        size = self.config.pool_size if pool_size is None else pool_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidRequest(f"pool_size: must be a whole number, 1 or more, and not {size!r}")
        model = SandboxFactory.create_sandbox(
            SandboxType.DOCKER if sandbox_type is None else sandbox_type,
            self.config.sandbox_config if config is None else config,
        )
        if not isinstance(model, DockerSandbox):
            raise InvalidRequest(f"a pool is made of sandboxes of a daemon, and {model.sandbox_type.value} has none")
        model.use(await self._connect(), self._labels)
        self._pool_ids = await (await self._connect()).initialize_pool(self._pool_id, size, model.plan(), options)
        self._pool_config = model.config
        self._pool_initialized = True
        return list(self._pool_ids)

    async def execute_tool_in_pool(
        self,
        tool_name: str,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        *,
        pool_id: str | None = None,
    ) -> ToolResult:
        """Runs a tool in the next free sandbox of the pool, which is clean before the next call.

        Callers are served first come, first served. ``timeout``: how many seconds to wait for a free one (not how
        long the tool may run); ``None``: an hour. ``pool_id``: another pool of the daemon, such as one that its
        operator defines; ``None``: the manager's own. Raises ``ValueError`` before the pool exists, ``TimeoutError``
        when none was free in time, and what `execute_tool` raises.
        """
        if timeout is not None and not 0 <= timeout <= POOL_TIMEOUT_S_MAX:
            raise InvalidRequest(f"timeout: must be a number of seconds, 0 to {POOL_TIMEOUT_S_MAX:g}")
        if pool_id is None:
            self._check_pool()
        config = DockerSandboxConfig() if self._pool_config is None or pool_id is not None else self._pool_config
        call = DockerSandbox(config).call(tool_name, {} if parameters is None else parameters)
        call = dataclasses.replace(call, sandbox_id="")
        return await (await self._connect()).run_in_pool(pool_id or self._pool_id, call, wait_timeout_s=timeout)

    async def claim(
        self, claim: PoolClaim | None = None, *, pool_id: str | None = None, timeout: float | None = None
    ) -> DockerSandbox:
        """Takes the next free sandbox out of the pool as one of the caller's own; the pool fills its place.

        It runs already, so this takes milliseconds. Nobody else gets it afterwards: it is deleted with the manager, or
        before. ``timeout``: how many seconds to wait for a free one; ``None``: a minute. ``pool_id``: as for
        `execute_tool_in_pool`. Raises as `execute_tool_in_pool`, and `PolicyDenied` for limits that are not granted.
        """
        if timeout is not None and not 0 <= timeout <= POOL_TIMEOUT_S_MAX:
            raise InvalidRequest(f"timeout: must be a number of seconds, 0 to {POOL_TIMEOUT_S_MAX:g}")
        if pool_id is None:
            self._check_pool()
        wanted = claim or PoolClaim()
        labelled = dataclasses.replace(wanted, labels={**wanted.labels, **self._labels})
        transport = await self._connect()
        info = await transport.pools.claim(pool_id or self._pool_id, labelled, timeout)
        try:
            sandbox = await DockerSandbox.attach(transport, info.id)
        except BaseException:  # nobody would delete it
            with contextlib.suppress(EnclaveError):
                await transport.delete_sandbox(info.id, wait=False)
            raise
        self._sandboxes[info.id] = sandbox
        return sandbox

    async def pool_stats(self, pool_id: str | None = None) -> PoolStats:
        """Shows the pool with its members: who is free or busy, what has happened, what is wrong.

        Raises `PoolNotFound` (a ``ValueError``) before the pool exists.
        """
        if pool_id is None:
            self._check_pool()
        return await (await self._connect()).pools.get(pool_id or self._pool_id)

    @property
    def _pool_id(self) -> str:
        return self._labels[MANAGER_LABEL]

    def _check_pool(self) -> None:
        """Raises `PoolNotFound` if it is known that there is no pool."""
        if not self._pool_initialized:
            raise PoolNotFound("Sandbox pool is empty, call initialize_pool first")

    async def _delete_pool(self) -> None:
        """Deletes the pool with its sandboxes, if there is one."""
        if self._pool_initialized:
            with contextlib.suppress(PoolNotFound):
                await (await self._connect()).delete_pool(self._pool_id)
            self._pool_initialized, self._pool_ids = False, []
