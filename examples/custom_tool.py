"""A tool of your own: it runs in your process and works against a sandbox.

    python examples/custom_tool.py

This one checks a function that somebody wrote against examples of what it should return. Registered under a name, it
is enabled like any other tool and describes itself to a language model.
"""

import asyncio
import json
from typing import Any

from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxType
from ms_enclave.sandbox.tools import Tool, register_tool
from pydantic import BaseModel, Field

CHECK = """
import json
from solution import {function} as function

cases = json.load(open("cases.json"))
print(json.dumps([function(*given) for given, _ in cases]))
"""


class Parameters(BaseModel):
    """What a call may say."""

    code: str = Field(description="Python source that defines the function")
    function: str = Field(description="Name of the function")
    cases: list[tuple[list[Any], Any]] = Field(description="Pairs of arguments and the wanted result")


@register_tool("check_function")
class CheckFunction(Tool):
    """Says which of the cases a function gets right."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            description="Check a Python function against examples of what it should return",
            parameters=Parameters,
            **options,
        )

    async def execute(self, sandbox: Sandbox, /, **parameters: Any) -> dict[str, Any]:
        wanted = Parameters.model_validate(parameters)
        await sandbox.put_file("solution.py", wanted.code)
        await sandbox.put_file("cases.json", json.dumps(wanted.cases))
        result = await sandbox.execute_tool(
            "python_executor", {"code": CHECK.format(function=wanted.function), "isolated": True, "timeout": 5}
        )
        if not result.success:
            return {"right": 0, "of": len(wanted.cases), "problem": result.error}
        answers = json.loads(result.output)
        right = sum(answer == case[1] for answer, case in zip(answers, wanted.cases, strict=True))
        return {"right": right, "of": len(wanted.cases), "answers": answers}


async def main() -> None:
    config = DockerSandboxConfig(memory_limit="256m", tools_config={"python_executor": {}, "check_function": {}})
    async with SandboxFactory.create_sandbox(SandboxType.DOCKER, config) as sandbox:
        schema = sandbox.get_available_tools()["check_function"]["function"]
        print(f"{schema['name']}({', '.join(schema['parameters']['properties'])}): {schema['description']}")
        cases = [([2], True), ([9], False), ([13], True)]
        for code in (
            "def is_prime(n):\n    return all(n % d for d in range(2, n))",
            "def is_prime(n):\n    return n % 2 == 1",
            "def is_prime(n):\n    return prime(n)",
        ):
            parameters = {"code": code, "function": "is_prime", "cases": cases}
            result = await sandbox.execute_tool("check_function", parameters)
            found = result.output
            problem = found.get("problem", "").strip().splitlines()[-1:]
            print(f"{found['right']} of {found['of']} right", *problem)


if __name__ == "__main__":
    asyncio.run(main())
