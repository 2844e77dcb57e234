"""Starts a program, leaves, and comes back by its id, as another process would.

python examples/background.py
"""

import asyncio

from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, ExecutionOptions, Output, SandboxType

COMMAND = "for step in 1 2 3; do echo step $step; sleep 0.2; done; exit 3"


async def leave(sandbox: Sandbox) -> str:
    """Starts it. Nobody follows it when this returns."""
    options = ExecutionOptions(detach=True, timeout=60)
    execution = await sandbox.start_execution("shell_executor", command=COMMAND, options=options)
    return execution.id


async def come_back(sandbox: Sandbox, execution_id: str) -> None:
    """Takes it up again: what was written meanwhile is kept (the last 1 MiB, unless more is asked for)."""
    execution = await sandbox.get_execution(execution_id)
    finished = await execution.wait(timeout=30)
    written = [event.data async for event in execution if isinstance(event, Output)]
    print(b"".join(written).decode(), end="")
    print("it ended:", finished and (finished.verdict.value, finished.exit_code))


async def main() -> None:
    """Leaves a program alone, sees it in the list, and comes back."""
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit="256m")) as sandbox:
        execution_id = await leave(sandbox)
        print("listed:", [info.id for info in await sandbox.list_executions()] == [execution_id])
        await come_back(sandbox, execution_id)


if __name__ == "__main__":
    asyncio.run(main())
