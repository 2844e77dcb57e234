"""Runs Python source in the sandbox's persistent interpreter, or in a fresh one."""

from __future__ import annotations

from pydantic import Field

from enclaved.model import PythonJob
from enclaved.tools.base import Timed, Tool, refused
from enclaved.tools.restrictions import PythonOptions


class PythonParams(Timed):
    """What a call may say."""

    code: str = Field(description="Python code to execute")
    isolated: bool = Field(
        default=False, description="Run in a fresh interpreter that shares no variables with other calls"
    )


class PythonExecutorTool(Tool):
    """Runs Python source. Variables live from call to call unless a call is isolated."""

    name = "python_executor"
    aliases = ()
    description = "Execute Python code in an isolated environment; variables are kept between calls"
    Params = PythonParams
    Options = PythonOptions

    def plan(self, params: PythonParams, options: PythonOptions) -> PythonJob:
        """Plans the run. Refuses blank code."""
        if not params.code.strip():
            raise refused("code", "No code provided")
        imports = options.import_rules()
        return PythonJob(params.code, None, imports) if params.isolated else PythonJob(params.code, imports=imports)
