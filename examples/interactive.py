"""Answers a program that asks: its prompt, and the news that it waits for input.

python examples/interactive.py
"""

import asyncio

from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    ExecutionOptions,
    Finished,
    Notice,
    NoticeKind,
    Output,
    SandboxType,
)

CODE = """
name = input("Who are you? ")
number = int(input(f"Hello {name}, which number? "))
print(f"{number} squared is {number ** 2}")
"""
ANSWERS = ["Ada\n", "12\n"]


async def main() -> None:
    """Lets the program run until it waits, and gives it the next answer."""
    answers = iter(ANSWERS)
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit="256m")) as sandbox:
        options = ExecutionOptions(stdin=True, idle_timeout=20)
        async with await sandbox.start_execution(
            "python_executor", code=CODE, isolated=True, options=options
        ) as execution:
            async for event in execution:
                match event:
                    case Output():
                        print(event.text, end="")
                    case Notice(kind=NoticeKind.AWAITING_INPUT):
                        answer = next(answers, None)
                        if answer is None:
                            execution.end_input()
                        else:
                            print(f"<- {answer}", end="")
                            await execution.write(answer)
                    case Finished():
                        print(event.verdict)


if __name__ == "__main__":
    asyncio.run(main())
