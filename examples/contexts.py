"""Keeps variables in interpreters with names, each for itself.

python examples/contexts.py
"""

import asyncio

from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType


async def main() -> None:
    """Opens two contexts, uses them, and gives one a fresh interpreter."""
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit="256m")) as sandbox:
        async with await sandbox.contexts.open("left") as left, await sandbox.contexts.open("right") as right:
            await asyncio.gather(left.execute("x = 'L'"), right.execute("x = 'R'"))
            for context in (left, right):
                result = await context.execute("print(x)")
                print(context.name, "says", result.output, end="")

            slow = await left.execute("while True: pass", timeout=1)
            print("a timeout:", slow.status.value, "- variables survived:", slow.metadata["state_preserved"])

            await right.reset()
            print("after a reset:", (await right.execute("print('x' in globals())")).output, end="")
            print("open:", [context.name for context in await sandbox.contexts.list()])
        print("open at the end:", [context.name for context in await sandbox.contexts.list()])


if __name__ == "__main__":
    asyncio.run(main())
