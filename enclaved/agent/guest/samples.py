"""Answers the daemon's question what an execution uses."""

from __future__ import annotations

import time

from .fields import count
from .limits import SAMPLE_DEADLINE_S, SAMPLE_KEPT_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

    from .execution import Execution
    from .link import Link
    from .loop import Loop
    from .observation import Answer, Observer
    from .usage import Sampler


class Samples:
    """Adds up what the guest sees itself and what the observer claims. Readers that ask at once get the same."""

    def __init__(self, loop: Loop, link: Link, sampler: Sampler, observer: Observer) -> None:
        self.loop, self.link, self.sampler, self.observer = loop, link, sampler, observer
        self.pending: Dict[str, List[Any]] = {}  # numbers of the questions that wait for the observer

    def on_sample(self, execution: Execution, header: Dict[str, Any], payload: bytes) -> None:
        """Answers with `sampled`: as it is now or was within 50 ms, and after the end as it was then."""
        number, now = count(header, "number"), time.monotonic()
        if execution.name in self.pending:
            self.pending[execution.name].append(number)
        elif execution.state != "running" or now - execution.sampled_at < SAMPLE_KEPT_S:
            self.answer(execution, number)
        else:
            execution.sampled_at = now
            tree = self.sampler.sample(execution)
            self.pending[execution.name] = [number]
            self.observer.ask(tree, None, lambda answer: self.on_answer(execution, answer))
            if execution.name in self.pending:  # it has not been answered yet
                self.loop.after(SAMPLE_DEADLINE_S, lambda: self.answer_all(execution))

    def on_answer(self, execution: Execution, answer: Optional[Answer]) -> None:
        """Adds what the observer claims, if it says anything."""
        if answer is not None:
            execution.used.add_transfer(answer.read_bytes, answer.written_bytes)
        self.answer_all(execution)

    def answer_all(self, execution: Execution) -> None:
        """Answers everybody who waits, with what is known."""
        for number in self.pending.pop(execution.name, ()):
            self.answer(execution, number)

    def answer(self, execution: Execution, number: Any) -> None:
        """Sends one sample."""
        usage = execution.used.header()
        if execution.finished is not None:
            usage.update(execution.finished["usage"] or {}, memory_bytes=0, pids=0)
        times = execution.times
        now = time.monotonic() if execution.state == "running" else times["draining"]
        self.link.send(
            {
                "type": "sampled",
                "execution": execution.name,
                "number": number,
                "usage": usage,
                "time_s": round(max(0.0, now - times["running"]), 6),
            }
        )
