"""A tour of a sandbox in ten stops. Needs a Docker engine and the default image; scripts/quickstart finds both.

Every stop runs code in one real sandbox and says how it ended. The tour fails if a stop does not end as it should.
"""

import asyncio
import sys
import textwrap
from dataclasses import dataclass

from ms_enclave.errors import EnclaveError
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType, ToolResult

CONFIG = DockerSandboxConfig(
    image="python:3.11-slim",
    memory_limit="256m",
    timeout=30,
    tools_config={"python_executor": {}, "shell_executor": {}, "file_operation": {}},
)


@dataclass(frozen=True)
class Stop:
    """One call of a tool, and the verdict that it must end with."""

    title: str
    tool: str
    parameters: dict[str, str | int | bool]
    verdict: str = "EXITED"
    output: str = ""
    """A part of the output that must be there."""


STOPS = (
    Stop(
        "Python code runs in the sandbox",
        "python_executor",
        {"code": "import platform, os\nprint('Hello from Python', platform.python_version(), 'as user', os.getuid())"},
        output="Hello from Python",
    ),
    Stop("A variable of one call ...", "python_executor", {"code": "primes = [2, 3, 5, 7]"}),
    Stop("... is there in the next", "python_executor", {"code": "print(sum(primes))"}, output="17"),
    Stop(
        "Shell commands",
        "shell_executor",
        {"command": 'echo "$(whoami) in $(pwd) says $((6 * 7))"'},
        output="says 42",
    ),
    Stop(
        "Write a file ...",
        "file_operation",
        {"operation": "write", "file_path": "notes/today.txt", "content": "It's a file.\n"},
    ),
    Stop(
        "... and read it",
        "file_operation",
        {"operation": "read", "file_path": "notes/today.txt"},
        output="It's a file.",
    ),
    Stop(
        "A program that never ends meets its timeout",
        "python_executor",
        {"code": "while True: pass", "timeout": 1, "isolated": True},
        verdict="TIMEOUT",
    ),
    Stop(
        "A program that wants 1 GB meets the memory limit of 256 MB",
        "python_executor",
        {"code": "hoard = bytearray(10**9)\nprint('got it all')", "isolated": True},
        verdict="OUT_OF_MEMORY",
    ),
    Stop(
        "A hostile program is contained",
        "python_executor",
        {
            "code": textwrap.dedent(
                """
                import os, signal, socket

                forks = 0
                try:
                    while True:                     # a fork bomb
                        if os.fork() == 0:
                            signal.pause()
                        forks += 1
                except OSError as error:
                    print(f"no process after {forks} forks: {error.strerror}")
                os.kill(-1, signal.SIGKILL)         # kill everything it can reach
                try:
                    open("/etc/passwd", "a")        # a new user for later
                except OSError as error:
                    print("no new user:", error.strerror)
                print("no network but:", *(name for _, name in socket.if_nameindex()))
                """
            ).strip(),
            "isolated": True,
        },
        output="no new user",
    ),
)

STILL_HERE = Stop(
    "The sandbox survived all that; only the interpreter with the variables was within reach",
    "python_executor",
    {"code": "print('still here; variables:', 'primes' in globals())"},
    output="still here",
)

NEXT = """
import asyncio
from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType

async def main():
    config = DockerSandboxConfig(memory_limit="512m", tools_config={"python_executor": {}})
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        result = await sandbox.execute_tool("python_executor", {"code": "print(6 * 7)"})
        print(result.status, result.output)
asyncio.run(main())
"""


async def main() -> int:
    """Makes a sandbox, goes to every stop and returns how many of them did not end as they should."""
    surprises = 0
    print("Starting a sandbox ...", flush=True)
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, CONFIG) as sandbox:
        for number, stop in enumerate(STOPS, 1):
            surprises += not await visit(sandbox, number, stop)
        surprises += not await visit(sandbox, len(STOPS) + 1, STILL_HERE)
    print("\nThe sandbox is gone, with everything in it. The ten lines to write next:")
    print(textwrap.indent(NEXT, "    "))
    return surprises


async def visit(sandbox: Sandbox, number: int, stop: Stop) -> bool:
    """Runs one stop, shows it, and says whether it ended as it should."""
    print(f"\n{number}. {stop.title}")
    shown = stop.parameters.get("code") or stop.parameters.get("command") or ""
    for line in str(shown).splitlines():
        print(f"   > {line}")
    result = await sandbox.execute_tool(stop.tool, stop.parameters)
    return said(result, stop)


def said(result: ToolResult, stop: Stop) -> bool:
    """Shows a result, and says whether it is what the stop wants."""
    for line in str(result.output or "").splitlines():
        print(f"   {line}")
    verdict = result.metadata.get("verdict", "EXITED")
    if verdict != "EXITED":
        print(f"   {verdict}: {result.error}")
    for notice in result.metadata.get("notices", ()):
        print(f"   ({notice})")
    if verdict == stop.verdict and stop.output in str(result.output or ""):
        return True
    print(f"   This is not as it should be: expected {stop.verdict} {stop.output!r}, got {result!r}", file=sys.stderr)
    return False


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except EnclaveError as error:
        sys.exit(f"tour: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
