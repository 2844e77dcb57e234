"""The guest's side of the observer child: starts it on first need, asks it, and survives whatever it does.

It runs as the sandbox's user, so any program of the sandbox can stop it, kill it or answer in its place. Nothing here
waits for it: each question has a deadline, each answer is checked, and a child that is late or lies is killed and
replaced, more and more rarely if that goes on.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import struct
import time

from .handover import HEADER
from .limits import (
    OBSERVER_DEADLINE_S,
    OBSERVER_IDLE_S,
    OBSERVER_PAUSE_MAX_S,
    OBSERVER_PAUSE_S,
    OBSERVER_PIDS,
    OBSERVER_QUESTIONS,
    OBSERVER_TRUSTED_S,
)
from .processes import send_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

    from .children import Child, Children
    from .loop import Loop, Timer
    from .nursery import Nursery

    Target = Tuple[str, int]

JOB = json.dumps({"kind": "observer"}).encode()


class Answer:
    """What the observer claims: bytes transferred up to now, and whether the processes wait for their input."""

    __slots__ = ("read_bytes", "waiting", "written_bytes")

    def __init__(self, read_bytes: int, written_bytes: int, waiting: bool) -> None:
        self.read_bytes, self.written_bytes, self.waiting = read_bytes, written_bytes, waiting


class Question:
    """One question, and who wants to know."""

    __slots__ = ("number", "pids", "target", "tell")

    def __init__(self, pids: List[int], target: Optional[Target], tell: Callable[[Optional[Answer]], None]) -> None:
        self.number, self.pids, self.target, self.tell = 0, pids, target, tell


class Observer:
    """Asks one question after the other. Who asks gets None where there is no answer."""

    def __init__(self, loop: Loop, children: Children, nursery: Nursery) -> None:
        self.loop, self.children, self.nursery = loop, children, nursery
        self.child: Optional[Child] = None
        self.questions: Deque[Question] = collections.deque()
        self.asked: Optional[Question] = None
        self.count = 0
        self.deadline: Optional[Timer] = None
        self.rest: Optional[Timer] = None
        self.used_at = self.started_at = self.not_before = 0.0
        self.failures = 0
        self.starting = False

    def ask(self, pids: List[int], target: Optional[Target], tell: Callable[[Optional[Answer]], None]) -> None:
        """Asks about some processes (at most 1024 of them). ``tell`` is called once, within some seconds."""
        if len(self.questions) >= OBSERVER_QUESTIONS:
            tell(None)
            return
        self.questions.append(Question(pids[:OBSERVER_PIDS], target, tell))
        self.next()

    def next(self) -> None:
        """Sends the next question, unless one is under way."""
        if not self.questions or self.asked is not None:
            return
        if self.child is None:
            self.start()
            return
        question = self.questions.popleft()
        self.count += 1
        question.number, self.asked = self.count, question
        self.used_at = time.monotonic()
        self.deadline = self.loop.after(OBSERVER_DEADLINE_S, self.fail)
        data = json.dumps({"number": question.number, "pids": question.pids, "target": question.target}).encode()
        self.children.give(self.child, struct.pack(">I", len(data)) + data, [])

    def start(self) -> None:
        """Asks for a child to be the observer, unless the last one failed just now."""
        if time.monotonic() < self.not_before:
            self.dismiss()
        elif not self.starting:
            self.starting = True
            self.nursery.request(self, self.employ, lambda reason: self.fail())

    def employ(self, child: Child) -> None:
        """Makes a child the observer."""
        self.starting = False
        self.started_at = time.monotonic()
        nulls: List[int] = []
        try:
            # With descriptors, what follows is not read together with the job.
            nulls.extend(os.open(os.devnull, os.O_RDWR) for _ in range(3))
        except OSError:
            for fd in nulls:
                os.close(fd)
            self.nursery.standby.append(child)
            self.fail()
            return
        self.child, child.keeper = child, self
        send_signal(child.pid, signal.SIGCONT)
        self.children.give(child, HEADER.pack(len(JOB), 0, time.monotonic()) + JOB, nulls)
        if self.rest is None:
            self.rest = self.loop.after(OBSERVER_IDLE_S, self.rest_if_idle)
        self.next()

    def rest_if_idle(self) -> None:
        """Ends an observer that nobody has asked for a while; its memory is the sandbox's."""
        self.rest = None
        if self.child is None:
            return
        if self.asked is None and time.monotonic() - self.used_at >= OBSERVER_IDLE_S:
            self.dismiss()
        else:
            self.rest = self.loop.after(OBSERVER_IDLE_S, self.rest_if_idle)

    def on_claim(self, child: Child, claim: Dict[str, Any]) -> None:
        """Takes an answer. One that is none, or that nobody asked for, ends this observer."""
        if child is not self.child:
            return
        question = self.asked
        numbers = [claim.get(name) for name in ("number", "read", "written")]
        sound = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        waiting = claim.get("waiting")
        if question is None or not sound or numbers[0] != question.number or type(waiting) is not bool:
            self.fail()
            return
        self.asked = None
        self.loop.cancel(self.deadline)
        question.tell(Answer(int(numbers[1] or 0), int(numbers[2] or 0), waiting))
        self.next()

    def on_gone(self, child: Child) -> None:
        """An observer has ended or closed its socket."""
        if child is self.child:
            self.fail()

    def fail(self) -> None:
        """Gives up on this observer; the next one comes after a pause."""
        now = time.monotonic()
        self.failures = 0 if now - self.started_at > OBSERVER_TRUSTED_S else min(self.failures + 1, 16)
        self.not_before = now + min(OBSERVER_PAUSE_MAX_S, OBSERVER_PAUSE_S * 2**self.failures)
        self.dismiss()

    def dismiss(self) -> None:
        """Ends the observer. Questions that are open get no answer; the next one starts another."""
        child, self.child = self.child, None
        self.nursery.withdraw(self)
        self.starting = False
        if child is not None:
            self.children.discard(child)
        self.loop.cancel(self.deadline)
        open_questions = [self.asked] if self.asked is not None else []
        open_questions += self.questions
        self.asked = None
        self.questions.clear()
        for question in open_questions:
            question.tell(None)
