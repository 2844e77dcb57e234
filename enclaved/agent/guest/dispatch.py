"""Which part of the guest does what a frame says."""

from __future__ import annotations

from .frames import FrameError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

    from .execution import Execution
    from .records import Records

    Header = Dict[str, Any]
    ForSandbox = Callable[[Header, bytes], None]
    ForExecution = Callable[[Execution, Header, bytes], None]


class Dispatch:
    """Two tables by the type of a frame: frames for the sandbox, and those for an execution that must be known."""

    def __init__(self, records: Records, send: Callable[[Header], None]) -> None:
        self.records, self.send = records, send
        self.for_sandbox: Dict[str, ForSandbox] = {}
        self.for_execution: Dict[str, ForExecution] = {}

    def on_frame(self, header: Header, payload: bytes) -> None:
        """Does what one frame of the daemon says. One for an execution that is gone comes too late, and is ignored."""
        kind = header["type"]
        if not isinstance(header.get("execution", ""), str):  # it would be told to every daemon that comes
            raise FrameError("the name of an execution is no text")
        for_sandbox = self.for_sandbox.get(kind)
        if for_sandbox is not None:
            for_sandbox(header, payload)
            return
        for_execution = self.for_execution.get(kind)
        if for_execution is None:
            raise FrameError("unknown type %r" % kind)
        execution = self.records.by_name.get(header["execution"])
        if execution is not None:
            for_execution(execution, header, payload)
        elif kind == "subscribe":
            self.send({"type": "unknown", "execution": header["execution"], "reader": header["reader"]})
