"""What a child says about itself. To the guest it is a claim of user code."""

from __future__ import annotations

import json
import struct

from .limits import MAX_EXCEPTION_NAME_BYTES, MAX_EXCEPTION_TEXT_BYTES, USAGE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict


def encode_claim(claim: Dict[str, Any]) -> bytes:
    text = json.dumps(claim).encode()
    return struct.pack(">I", len(text)) + text


def cut(text: object, limit_bytes: int) -> str:
    """Makes text valid and short, also as JSON, where a character may take six bytes. Anything else is no text."""
    short = text.encode("utf-8", "replace")[:limit_bytes].decode("utf-8", "ignore") if isinstance(text, str) else ""
    while len(json.dumps(short)) > 2 * limit_bytes + 2:
        short = short[: len(short) // 2]
    return short


def checked_claim(claim: Dict[str, Any]) -> Dict[str, Any]:
    """What the end of a program may claim, and nothing else: user code can write anything to its socket."""
    code, exception, usage = (claim.get(name) for name in ("exit_code", "exception", "usage"))
    if isinstance(exception, dict):
        number = exception.get("errno")
        exception = {
            "type": cut(exception.get("type"), MAX_EXCEPTION_NAME_BYTES),
            "message": cut(exception.get("message"), MAX_EXCEPTION_TEXT_BYTES),
            "errno": number if type(number) is int and 0 < number < 4096 else None,
        }
    else:
        exception = None
    numbers: Dict[str, Any] = {}
    for name in USAGE:
        number = usage.get(name) if isinstance(usage, dict) else None
        if isinstance(number, (int, float)) and 0 <= number < 2**63:
            numbers[name] = number
    return {"exit_code": code & 0xFF if type(code) is int else None, "exception": exception, "usage": numbers}
