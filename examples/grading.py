"""Grades ten programs that nobody has read, and says why each of them passed or failed.

    python examples/grading.py

The task was: print the sum of the numbers in numbers.txt. Every program gets a sandbox of its own, so that none can
help or harm another, and runs in an interpreter of its own (``isolated``), so that its exit code is a fact and not
the claim of an interpreter that lives on.
"""

import asyncio
from dataclasses import dataclass

from ms_enclave.sandbox.manager import LocalSandboxManager
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType, ToolResult

NUMBERS = "1\n2\n39\n"
WANTED = "42"
AT_ONCE = 4

PROGRAMS = {
    "right": "print(sum(map(int, open('numbers.txt'))))",
    "also right": "total = 0\nfor line in open('numbers.txt'):\n    total += int(line)\nprint(total)",
    "wrong": "print(max(map(int, open('numbers.txt'))))",
    "silent": "sum(map(int, open('numbers.txt')))",
    "misspelt": "prnt(sum(map(int, open('numbers.txt'))))",
    "unfinished": "print(sum(map(int, open('numbers.txt')))",
    "endless": "while True: pass",
    "greedy": "hoard = bytearray(10**9)",
    "crashing": "import os\nos.kill(os.getpid(), 11)",
    "hostile": "import os\nos.kill(-1, 9)\nopen('/etc/passwd', 'w')",
}


@dataclass(frozen=True)
class Grade:
    """What became of one program."""

    name: str
    passed: bool
    why: str


def grade(name: str, result: ToolResult) -> Grade:
    """Judges by the verdict first, and by the output only where the program ended well."""
    if result.success:
        answer = result.output.strip()
        return Grade(name, answer == WANTED, "correct" if answer == WANTED else f"printed {answer!r}")
    last_line = (result.error or "").strip().splitlines()[-1]
    return Grade(name, False, f"{result.metadata['verdict']}: {last_line}")


async def main() -> None:
    config = DockerSandboxConfig(memory_limit="128m", timeout=2, tools_config=["python_executor"])
    slots = asyncio.Semaphore(AT_ONCE)
    async with LocalSandboxManager() as manager:

        async def run(name: str, code: str) -> Grade:
            async with slots:
                sandbox_id = await manager.create_sandbox(SandboxType.DOCKER, config)
                await manager.put_file(sandbox_id, "numbers.txt", NUMBERS)
                result = await manager.execute_tool(sandbox_id, "python_executor", {"code": code, "isolated": True})
                await manager.delete_sandbox(sandbox_id)
                return grade(name, result)

        grades = await asyncio.gather(*(run(name, code) for name, code in PROGRAMS.items()))
    for each in grades:
        print(f"{'passed' if each.passed else 'failed'}  {each.name:<11} {each.why}")
    print(f"{sum(each.passed for each in grades)} of {len(grades)} passed")


if __name__ == "__main__":
    asyncio.run(main())
