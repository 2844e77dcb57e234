"""The documented API in short examples, each with a sandbox of its own.

    python examples/usage_examples.py

Needs a Docker engine and the default image; scripts/quickstart finds both.
"""

import asyncio
from collections.abc import Awaitable, Callable

from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, Output, SandboxStatus, SandboxType


async def basic() -> None:
    """Runs Python code, and shows what it printed."""
    config = DockerSandboxConfig(
        image="python:3.11-slim",
        timeout=30,
        memory_limit="512m",
        tools_config={"python_executor": {}},
    )
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        result = await sandbox.execute_tool("python_executor", {"code": "print(f'2 + 2 = {2 + 2}')"})
        print(result.output, end="")


async def variables() -> None:
    """Keeps variables from call to call, except in a call that is isolated."""
    config = DockerSandboxConfig(memory_limit="256m", tools_config={"python_executor": {}})
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        await sandbox.execute_tool("python_executor", {"code": "import statistics; data = [1, 2, 3, 4]"})
        result = await sandbox.execute_tool("python_executor", {"code": "print(statistics.mean(data))"})
        print("mean:", result.output, end="")
        alone = {"code": "print('data' in globals())", "isolated": True}
        result = await sandbox.execute_tool("python_executor", alone)
        print("data in an isolated call:", result.output, end="")


async def errors() -> None:
    """Tells apart the ways in which a program can fail. None of them is an exception here."""
    config = DockerSandboxConfig(memory_limit="256m", timeout=2)
    programs = {
        "a syntax error": "print('Missing quote)",
        "an exception": "print([1, 2, 3][3])",
        "an exit code": "import sys; sys.exit(3)",
        "an endless loop": "while True: pass",
        "too much memory": "hoard = bytearray(10**9)",
        "a crash": "import os; os.abort()",
    }
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        for what, code in programs.items():
            result = await sandbox.execute_tool("python_executor", {"code": code, "isolated": True})
            last_line = (result.error or "").strip().splitlines()[-1]
            print(f"{what}: {result.status.value}, {result.metadata['verdict']}: {last_line}")


async def commands() -> None:
    """Runs shell commands: a string through a shell, a list as it is."""
    config = DockerSandboxConfig(memory_limit="256m")
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        result = await sandbox.execute_tool(
            "bash", {"command": "seq 1 100 | paste -sd+ | sed 's/.*/print(&)/' | python"}
        )
        print("1 + ... + 100 =", result.output, end="")
        done = await sandbox.execute_command(["ls", "no such file"])
        print(f"exit code {done.exit_code}: {done.stderr}", end="")


async def files() -> None:
    """Puts a file in, lets a program work on it, and reads what it made."""
    config = DockerSandboxConfig(memory_limit="256m")
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        await sandbox.put_file("prices.csv", "apple,3\npear,4\n")
        code = """
import csv
with open("prices.csv") as prices, open("total.txt", "w") as total:
    print(sum(int(price) for _, price in csv.reader(prices)), file=total)
"""
        await sandbox.execute_tool("python_executor", {"code": code})
        print("total:", (await sandbox.read_file("total.txt")).decode(), end="")
        result = await sandbox.execute_tool("file_operation", {"operation": "exists", "file_path": "prices.csv"})
        print("prices.csv:", result.output)


async def live() -> None:
    """Shows output while the program runs."""
    config = DockerSandboxConfig(memory_limit="256m")
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        async for event in sandbox.stream("bash", {"command": "for i in 1 2 3; do echo line $i; sleep 0.1; done"}):
            if isinstance(event, Output):
                print(f"{event.channel.value}: {event.data.decode()}", end="")


async def many() -> None:
    """Keeps several sandboxes in a manager, which removes them at its end."""
    config = DockerSandboxConfig(memory_limit="128m", tools_config=["python_executor"])
    async with LocalSandboxManager() as manager:
        ids = await asyncio.gather(*(manager.create_sandbox(SandboxType.DOCKER, config) for _ in range(3)))
        calls = (
            manager.execute_tool(sandbox_id, "python_executor", {"code": f"print({number} ** 2)"})
            for number, sandbox_id in enumerate(ids, 1)
        )
        print("squares:", [int(result.output) for result in await asyncio.gather(*calls)])
        print("running:", len(await manager.list_sandboxes(SandboxStatus.RUNNING)))


EXAMPLES: tuple[Callable[[], Awaitable[None]], ...] = (basic, variables, errors, commands, files, live, many)


async def main() -> None:
    for example in EXAMPLES:
        print(f"\n--- {example.__name__}: {example.__doc__}")
        await example()


if __name__ == "__main__":
    asyncio.run(main())
