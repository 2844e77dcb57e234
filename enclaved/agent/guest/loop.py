"""The event loop of PID 1: descriptors that become ready, and times that come."""

from __future__ import annotations

import heapq
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, List, NoReturn, Optional

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT


class Timer:
    """Something to do at a time. Without a call it has been done or cancelled."""

    __slots__ = ("call", "deadline", "number")

    def __init__(self, deadline: float, number: int, call: Callable[[], None]) -> None:
        self.deadline, self.number = deadline, number
        self.call: Optional[Callable[[], None]] = call

    def __lt__(self, other: Timer) -> bool:
        return (self.deadline, self.number) < (other.deadline, other.number)


class Loop:
    """Waits for descriptors and times, one at a time."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.handlers: Dict[int, Callable[[int], None]] = {}
        self.events: Dict[int, int] = {}  # what each descriptor is watched for
        self.timers: List[Timer] = []
        self.timer_count = 0
        self.timers_cancelled = 0
        self.still_s = 0.0  # how long the clock has stood still in all
        self.still_since: Optional[float] = None
        self.beat: Optional[Callable[[], None]] = None
        self.beat_every_s = self.beat_at = 0.0

    def now(self) -> float:
        """The time by which timers go: monotonic, less what the clock stood still. Other deadlines go by it too."""
        real = time.monotonic() if self.still_since is None else self.still_since
        return real - self.still_s

    def stand_still(self) -> None:
        """No timer comes any nearer from now on, and none that is due is called."""
        if self.still_since is None:
            self.still_since = time.monotonic()

    def go_on(self) -> None:
        """Timers go on where they were."""
        if self.still_since is not None:
            self.still_s += time.monotonic() - self.still_since
            self.still_since = None

    def run(self, after_each_round: Callable[[], None]) -> NoReturn:
        """Serves what is ready and what is due, round after round. Never returns."""
        while True:
            for fd, events in self.poll.poll(self.wait_s()):
                handler = self.handlers.get(fd)
                if handler is not None:
                    handler(events)
            self.run_timers()
            self.run_beat()
            after_each_round()

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Calls the handler when the descriptor is ready."""
        before = self.events.get(fd)
        if before is None:
            self.poll.register(fd, events)
        elif before != events:
            self.poll.modify(fd, events)
        self.events[fd] = events
        self.handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forgets a descriptor. One that is not watched is fine."""
        if self.handlers.pop(fd, None) is not None:
            del self.events[fd]
            self.poll.unregister(fd)

    def after(self, delay_s: float, call: Callable[[], None]) -> Timer:
        """Calls once, later."""
        self.timer_count += 1
        timer = Timer(self.now() + delay_s, self.timer_count, call)
        heapq.heappush(self.timers, timer)
        return timer

    def each(self, every_s: float, call: Callable[[], None]) -> None:
        """Calls again and again, in real time: also while the clock stands still. There is one such call."""
        self.beat, self.beat_every_s, self.beat_at = call, every_s, time.monotonic() + every_s

    def cancel(self, timer: Optional[Timer]) -> None:
        """Forgets a timer. Many forgotten ones are cleared away together."""
        if timer is None or timer.call is None:
            return
        timer.call = None
        self.timers_cancelled += 1
        if self.timers_cancelled > 256 and self.timers_cancelled * 2 > len(self.timers):
            self.timers = [timer for timer in self.timers if timer.call is not None]
            heapq.heapify(self.timers)
            self.timers_cancelled = 0

    def next_timer_s(self) -> Optional[float]:
        """The time until the next timer is due; None without one, and while the clock stands still."""
        if not self.timers or self.still_since is not None:
            return None
        return max(0.0, self.timers[0].deadline - self.now())

    def wait_s(self) -> Optional[float]:
        """How long to wait for descriptors at most; None: for ever."""
        timer_s = self.next_timer_s()
        if self.beat is None:
            return timer_s
        beat_s = max(0.0, self.beat_at - time.monotonic())
        return beat_s if timer_s is None else min(beat_s, timer_s)

    def run_beat(self) -> None:
        """Makes the call of `each` if it is due: once, however long this process was frozen."""
        if self.beat is not None and time.monotonic() >= self.beat_at:
            self.beat_at = time.monotonic() + self.beat_every_s
            self.beat()

    def run_timers(self) -> None:
        """Does what is due."""
        if self.still_since is not None:
            return
        now = self.now()
        while self.timers and self.timers[0].deadline <= now:
            timer = heapq.heappop(self.timers)
            call, timer.call = timer.call, None
            if call is None:
                self.timers_cancelled -= 1
            else:
                call()
