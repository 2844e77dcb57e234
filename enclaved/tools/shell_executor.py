"""Runs commands: a string through a shell, a list as it is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from enclaved.errors import InvalidRequest
from enclaved.model import CommandJob
from enclaved.tools.base import ARGUMENT_LIMIT_BYTES, Timed, Tool, check_argument, refused
from enclaved.tools.restrictions import ShellOptions

COMMAND_LIMIT_BYTES = 1024 * 1024
"""All arguments of a list together; half of what Linux allows, which counts the environment as well."""

_POINTER_BYTES = 8
_REMEDY = "write it to a file first (file_operation) and run that"


def _string_or_strings(value: Any) -> Any:
    """Answers a wrong type with one violation instead of one for each member of the union."""
    if isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return value
    raise PydanticCustomError("command_type", "must be a string for a shell, or a list of strings to run as it is")


class ShellParams(Timed):
    """What a call may say."""

    command: Annotated[
        str | list[str],
        BeforeValidator(_string_or_strings),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string", "description": "Shell command to execute"},
                    {
                        "type": "array",
                        "description": "Program and arguments to execute without a shell",
                        "items": {"type": "string"},
                    },
                ]
            }
        ),
    ]


class ShellExecutorTool(Tool):
    """Runs a shell command, or a program with its arguments."""

    name = "shell_executor"
    aliases: tuple[str, ...] = ("bash",)
    description = "Execute shell commands in an isolated environment"
    Params = ShellParams
    Options = ShellOptions

    def plan(self, params: ShellParams, options: ShellOptions) -> CommandJob:
        """Plans the run. Refuses blank commands, long arguments, and what the options do not allow."""
        if isinstance(params.command, str):
            if not params.command.strip():
                raise refused("command", "No command provided")
            check_argument("command", params.command, ARGUMENT_LIMIT_BYTES, _REMEDY)
            options.check(params.command)
            if options.shell_path is not None:
                return CommandJob(argv=(options.shell_path, "-c", params.command))
            return CommandJob(shell=params.command)
        if not params.command or not params.command[0].strip():
            raise refused("command", "No command provided")
        for index, argument in enumerate(params.command):
            check_argument(f"command.{index}", argument, ARGUMENT_LIMIT_BYTES, "pass it through a file instead")
        size_bytes = sum(len(argument.encode()) + 1 + _POINTER_BYTES for argument in params.command)
        if size_bytes > COMMAND_LIMIT_BYTES:
            text = f"needs {size_bytes} bytes for its arguments, and at most {COMMAND_LIMIT_BYTES} are possible"
            raise InvalidRequest.of("parameters.command", f"{text}; pass them through a file instead")
        options.check(params.command)
        return CommandJob(argv=tuple(params.command))


class CommandTool(ShellExecutorTool):
    """Serves the documented ``execute_command``, which works whatever tools a sandbox enables. Not listed.

    What restricts ``shell_executor`` in a sandbox restricts it as well.
    """

    name = "command"
    aliases = ()
