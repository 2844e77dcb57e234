"""Shows output and resource use while a program runs.

python examples/streaming.py
"""

import asyncio

from ms_enclave.sandbox.boxes import SandboxFactory
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    ExecutionOptions,
    Finished,
    Output,
    SandboxType,
    Started,
    StatsSample,
)

CODE = """
import time
hoard = []
for step in range(1, 4):
    hoard.append(bytearray(20_000_000))
    print(f"step {step}: {20 * step} MB", flush=True)
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        pass
"""


async def main() -> None:
    """Follows one program to its end."""
    samples: list[StatsSample] = []
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, DockerSandboxConfig(memory_limit="256m")) as sandbox:
        options = ExecutionOptions(stats_interval=0.1)
        async for event in sandbox.stream("python_executor", code=CODE, isolated=True, options=options):
            match event:
                case Started():
                    print(f"started; it may run for {event.timeout_s:g} s")
                case Output():
                    print(event.text, end="")
                case StatsSample():
                    samples.append(event)
                case Finished():
                    print(f"{event.verdict}, exit code {event.exit_code}")
    most = max(sample.execution.memory_bytes for sample in samples)
    print("samples came:", len(samples) > 5)
    print("its memory grew beyond 40 MB:", most > 40_000_000)
    print("it used the processor:", samples[-1].execution.cpu_user_s > 0.1)


if __name__ == "__main__":
    asyncio.run(main())
