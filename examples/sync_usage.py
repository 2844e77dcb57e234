"""The same API without asyncio, for scripts, notebooks and threads.

python examples/sync_usage.py
"""

from concurrent.futures import ThreadPoolExecutor

from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType
from ms_enclave.sandbox.sync import LocalSandboxManager, SandboxFactory


def one() -> None:
    """A sandbox in a ``with`` block."""
    config = DockerSandboxConfig(memory_limit="256m")
    with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        sandbox.execute_tool("python_executor", {"code": "words = 'no loop in sight'.split()"})
        result = sandbox.execute_tool("python_executor", {"code": "print(len(words), 'words')"})
        print(result.output, end="")


def many() -> None:
    """A sandbox for each of several threads."""
    config = DockerSandboxConfig(memory_limit="128m")
    with LocalSandboxManager() as manager:

        def work(number: int) -> str:
            sandbox_id = manager.create_sandbox(SandboxType.DOCKER, config)
            result = manager.execute_tool(sandbox_id, "bash", {"command": f"echo thread {number}"})
            return str(result.output).strip()

        with ThreadPoolExecutor(3) as threads:
            print(*threads.map(work, range(1, 4)), sep=", ")


if __name__ == "__main__":
    one()
    many()
