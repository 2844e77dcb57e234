"""What an execution may have in a sandbox that was granted. Pure."""

from __future__ import annotations

from enclaved.core.spec_fields import is_seconds
from enclaved.errors import InvalidRequest, PolicyDenied
from enclaved.model import SandboxSpec


def execution_timeout(requested_s: float | None, tool_s: float | None, spec: SandboxSpec) -> float:
    """Decides how long an execution may run: the call's timeout, else the tool's, else the sandbox's, in seconds.

    ``requested_s`` is the call's own, ``tool_s`` that of its parameters or of the tool's options; 0 asks for the
    longest there is. Raises `InvalidRequest` for what is no number of seconds, `PolicyDenied` for more than the
    sandbox's maximum.
    """
    field, wanted = ("timeout_s", requested_s) if requested_s is not None else ("parameters.timeout", tool_s)
    if wanted is None:
        return spec.timeout_s
    if not is_seconds(wanted):
        text = "must be a number of seconds from 0 to 1e9; 0 asks for the longest that policy allows"
        raise InvalidRequest.of(field, text)
    if wanted > spec.timeout_max_s:
        text = f"{field} is {wanted:g} s, and at most {spec.timeout_max_s:g} s are granted; 0 asks for that"
        raise PolicyDenied("resources", field, text, limit=str(spec.timeout_max_s))
    return wanted or spec.timeout_max_s


def output_limit(requested_bytes: int | None, spec: SandboxSpec) -> int | None:
    """Decides how much output an execution may have, in bytes; ``None``: any.

    Raises `PolicyDenied` for more than the sandbox's maximum.
    """
    most = spec.output_limit_max_bytes
    if requested_bytes is None:
        return spec.output_limit_bytes or most or None
    if most and requested_bytes > most:
        text = f"output_limit_bytes is {requested_bytes}, and at most {most} are granted; ask for less"
        raise PolicyDenied("resources", "output_limit_bytes", text, limit=str(most))
    return requested_bytes
