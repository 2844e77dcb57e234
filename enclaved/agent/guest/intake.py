"""How executions come: a `run` frame, and the rest of a job that is too long for one."""

from __future__ import annotations

from .execution import Execution
from .frames import FrameError
from .limits import EXECUTIONS_MAX, MAX_JOB_BYTES, RECORD_KEPT_S, TERMINALS_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, Tuple

    from .link import Link
    from .readers import Readers
    from .records import Records


_TOO_MANY = "%d executions of this sandbox run, or have ended with output that nobody has read; read it, or wait %d s"


class Intake:
    """Takes in executions. ``begin`` is called with each one whose job is complete."""

    begin: Callable[[Execution], None]

    def __init__(self, link: Link, records: Records, readers: Readers) -> None:
        self.link, self.records, self.readers = link, records, readers

    def on_run(self, header: Dict[str, Any], payload: bytes) -> None:
        """Makes an execution; an id that is known is the same execution, and is not run again."""
        name = header["execution"]
        known = self.records.by_name.get(name)
        if known is not None:
            if header.get("subscribe") is not None:
                self.readers.on_subscribe(known, header["subscribe"])
            if known.finished is not None:
                self.link.send(known.finished)
            return
        execution = Execution(name, header)
        if execution.job_size > MAX_JOB_BYTES:
            raise FrameError("job of %d bytes" % execution.job_size)
        refusal = self.refusal(execution)
        if refusal is not None:
            code, message = refusal
            self.link.send({"type": "refused", "execution": name, "code": code, "message": message})
            return
        self.records.by_name[name] = execution
        if header.get("subscribe") is not None:
            self.readers.follow(execution, header["subscribe"])
        self.on_job(execution, payload)

    def refusal(self, execution: Execution) -> Optional[Tuple[str, str]]:
        """Why an execution cannot be taken, as code and text; None if it can."""
        known = self.records.by_name
        if not self.records.has_place():
            return "full", _TOO_MANY % (EXECUTIONS_MAX, RECORD_KEPT_S)
        if execution.terminal is not None:
            if execution.context_name is not None:
                return "no_process", "a context has no terminal"
            if sum(other.terminal is not None and other.finished is None for other in known.values()) >= TERMINALS_MAX:
                return "full", "%d terminals are open in the sandbox already" % TERMINALS_MAX
        return None

    def on_job(self, execution: Execution, payload: bytes) -> None:
        """Takes the next piece of a job; the last one starts it."""
        if execution.state != "queued" or len(execution.job) == execution.job_size:
            return  # it came before
        if len(execution.job) + len(payload) > execution.job_size:
            raise FrameError("more job than announced")
        execution.job += payload
        if len(execution.job) == execution.job_size:
            self.begin(execution)

    def on_lost(self) -> None:
        """The connection is gone, and with it its readers and the rest of jobs that had not come completely."""
        for execution in list(self.records.by_name.values()):
            execution.readers.clear()
            if execution.state == "queued" and len(execution.job) < execution.job_size:
                del self.records.by_name[execution.name]  # the rest is lost; the daemon sends it again
