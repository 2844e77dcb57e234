"""What becomes of sandboxes and calls when their engine is killed, frozen, cut off, restarted or filled.

Each does something to a private engine below a daemon and says what came of it. The tests run them small,
``scripts/chaos --engine`` at full size.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.integration.engine.private import PrivateEngine
from tests.integration.failures.ground import LOOK_EVERY_S, DaemonProcess, Ground, Stubs
from tests.service.edge import details

PATIENCE_S = 120.0
MEMORY_BYTES = 128 * 1024 * 1024
TICKS = "n=0; while :; do echo $n; n=$((n + 1)); sleep 0.05; done"
STATE = sandbox_pb.Sandbox.State


@dataclass
class Outcome:
    """What came of one thing that was done to an engine."""

    what: str
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        """Notes a fault unless something holds."""
        if not holds:
            self.faults.append(otherwise)


class Site:
    """A daemon on a private engine, and sandboxes in which a program counts."""

    def __init__(
        self, engine: PrivateEngine, ground: Ground, daemon: DaemonProcess, stubs: Stubs, flags: Sequence[str]
    ) -> None:
        self.engine, self.ground, self.daemon, self.stubs = engine, ground, daemon, stubs
        self._flags = flags
        self.names: list[str] = []
        self.ticks: dict[str, int] = {}
        self._made = 0

    async def make(self, count: int) -> None:
        """Makes sandboxes, each with a program that runs for ever."""
        for name in [f"box{self._made + number}" for number in range(count)]:
            await self.create(name)
            self.names.append(name)
            parameters = json.dumps({"command": TICKS})
            spec = pb.ExecutionSpec(
                sandbox_id=name,
                tool="shell_executor",
                parameters_json=parameters,
                execution_id=f"ticks-{name}",
                detach=True,
                timeout_s=600,
            )
            await self.stubs.executions.Run(pb.RunRequest(spec=spec), timeout=PATIENCE_S)
        self._made += count

    async def create(self, name: str, timeout_s: float = PATIENCE_S, **asked: Any) -> None:
        """Makes one sandbox of which this is asked, or raises what the daemon says."""
        spec = sandbox_pb.SandboxSpec(memory_limit_bytes=MEMORY_BYTES, **asked)
        request = sandbox_pb.CreateSandboxRequest(sandbox_id=name, spec=spec)
        await self.stubs.sandboxes.CreateSandbox(request, timeout=timeout_s)

    async def delete(self, name: str) -> None:
        """Deletes one sandbox."""
        await self.stubs.sandboxes.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id=name), timeout=PATIENCE_S)

    async def replace_daemon(self) -> None:
        """Kills the daemon without a word and starts another one in its place."""
        self.daemon.process.kill()
        await self.daemon.ended()
        self.daemon.check_log()
        self.daemon = await self.ground.daemon(*self._flags)

    async def works(self, name: str) -> bool:
        """Whether a program runs in a sandbox, in an interpreter that is there already."""
        parameters = json.dumps({"code": "print(6 * 7)"})
        spec = pb.ExecutionSpec(sandbox_id=name, tool="python_executor", parameters_json=parameters)
        answer = await self.stubs.executions.Run(pb.RunRequest(spec=spec), timeout=PATIENCE_S)
        return bool(answer.stdout == b"42\n")

    async def is_back(self, name: str) -> bool:
        """Whether the guest of a sandbox has come back to a daemon that was started anew."""
        try:
            return await self.works(name)
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False

    async def counts_on(self, name: str) -> bool:
        """Whether the program of a sandbox has gone on since this was asked last."""
        request = pb.AttachRequest(execution_id=f"ticks-{name}", sandbox_id=name, observe=True)
        call = self.stubs.executions.Attach(request, timeout=PATIENCE_S)
        before, seen = self.ticks.get(name, -1), -1
        async for answer in call:
            if answer.event.HasField("output"):
                seen = answer.event.output.offset + len(answer.event.output.data)
                if seen > before:
                    break
        call.cancel()
        self.ticks[name] = seen
        return seen > before

    async def lost(self) -> list[str]:
        """Those of the sandboxes that are lost."""
        listed = await self.stubs.sandboxes.ListSandboxes(sandbox_pb.ListSandboxesRequest(), timeout=PATIENCE_S)
        lost = {box.id for box in listed.sandboxes if box.state == STATE.STATE_ERROR}
        return sorted(lost.intersection(self.names))

    async def verdict(self, name: str) -> str:
        """How the program of a sandbox ended."""
        request = pb.WaitExecutionRequest(execution_id=f"ticks-{name}", sandbox_id=name)
        answer = await self.stubs.executions.WaitExecution(request, timeout=PATIENCE_S)
        return pb.Verdict.Name(answer.execution.finished.verdict).removeprefix("VERDICT_")

    async def clear(self, outcome: Outcome) -> None:
        """Deletes all sandboxes; nothing may be left of them on the engine or on the disk."""
        for name in self.names:
            await self.delete(name)
        self.names.clear()
        directories = self.ground.folder / "e" / "s"
        await within(PATIENCE_S, self._is_empty)
        left = [*await self.engine.containers(), *(entry.name for entry in directories.iterdir())]
        outcome.counts["left behind"] = len(left)
        outcome.expect(not left, f"left behind: {left}")

    async def _is_empty(self) -> bool:
        return not await self.engine.containers() and not list((self.ground.folder / "e" / "s").iterdir())


@asynccontextmanager
async def site(engine: PrivateEngine, policy: str = "") -> AsyncIterator[Site]:
    """Runs a daemon on an engine for as long as the block runs. It must end well, and log no fault of its own.

    ``policy`` is the text of a policy file; empty: the compiled roles.
    """
    ground = Ground()
    try:
        flags = ["--engine-url", engine.url]
        if policy:
            (ground.folder / "policy.toml").write_text(policy)
            flags += ["--policy-file", str(ground.folder / "policy.toml")]
        daemon = await ground.daemon(*flags)
        async with aio.insecure_channel(daemon.address) as channel:
            found = Site(engine, ground, daemon, Stubs(channel), flags)
            yield found
        found.daemon.process.terminate()
        await found.daemon.ended()
        found.daemon.check_log()
    finally:
        ground.clear()


async def within(seconds: float, look: Callable[[], Awaitable[bool]]) -> float:
    """Looks again and again until it is so; returns how long that took. Raises `TimeoutError`."""
    begun = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            if await look():
                return time.monotonic() - begun
            await asyncio.sleep(LOOK_EVERY_S)


async def refused(creating: Awaitable[None]) -> tuple[float, aio.AioRpcError | None]:
    """How long a call took until it was refused, and how; ``None``: it was not."""
    begun = time.monotonic()
    try:
        await creating
    except aio.AioRpcError as error:
        return time.monotonic() - begun, error
    return time.monotonic() - begun, None


def is_away(error: aio.AioRpcError) -> bool:
    """Whether a refusal says that the engine is away, and when to try again."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    told: dict[str, Any] = details(error)
    return told["ErrorInfo"].reason == "ENGINE_UNAVAILABLE" and told["RetryInfo"].retry_delay.seconds > 0


async def _served_again(here: Site) -> bool:
    _, error = await refused(here.create("again"))
    if error is None:
        await here.delete("again")
    return error is None


async def _all_go_on(here: Site, outcome: Outcome, when: str) -> None:
    for name in here.names:
        outcome.expect(await here.works(name), f"{name} does not work {when}")
        outcome.expect(await here.counts_on(name), f"the program in {name} does not go on {when}")


async def _none_lost(here: Site, outcome: Outcome) -> None:
    lost = await here.lost()
    outcome.counts["sandboxes lost"] = len(lost)
    outcome.expect(not lost, f"lost: {lost}")


async def killed_and_restored(here: Site, count: int) -> Outcome:
    """The engine is killed and started again, and its containers live on (``live-restore``)."""
    outcome = Outcome("killed, live-restore", counts={"sandboxes": count})
    here.engine.live_restore = True
    await here.engine.restart()
    await here.make(count)
    await here.engine.kill()
    await _all_go_on(here, outcome, "without an engine")
    _, error = await refused(here.create("away"))
    outcome.expect(error is not None and is_away(error), f"a create without an engine: {error}")
    outcome.seconds["engine's start"] = await here.engine.start()
    outcome.seconds["service back after it"] = await within(PATIENCE_S, lambda: _served_again(here))
    await _all_go_on(here, outcome, "after the kill")
    await _none_lost(here, outcome)
    await here.clear(outcome)
    return outcome


async def killed_and_not_restored(here: Site, count: int) -> Outcome:
    """The engine is killed and started again, and ends its containers then."""
    outcome = Outcome("killed, no live-restore", counts={"sandboxes": count})
    here.engine.live_restore = False
    await here.engine.restart()
    await here.make(count)
    await here.engine.kill()
    await _all_go_on(here, outcome, "without an engine")
    outcome.seconds["engine's start"] = await here.engine.start()
    await _all_lost(here, outcome, count)
    outcome.seconds["service back"] = await within(PATIENCE_S, lambda: _served_again(here))
    await here.clear(outcome)
    return outcome


async def _all_lost(here: Site, outcome: Outcome, count: int) -> None:
    async def told() -> bool:
        return len(await here.lost()) == count

    outcome.seconds["all told lost after it"] = await within(PATIENCE_S, told)
    verdicts = {await here.verdict(name) for name in here.names}
    outcome.expect(verdicts == {"SANDBOX_LOST"}, f"verdicts: {verdicts}")

    async def gone() -> bool:
        return not await here.engine.containers()

    outcome.seconds["containers gone after it"] = await within(PATIENCE_S, gone)


async def restarted(here: Site, count: int, *, live_restore: bool) -> Outcome:
    """The engine is stopped and started as for an upgrade."""
    what = "live-restore" if live_restore else "no live-restore"
    outcome = Outcome(f"stopped and started, {what}", counts={"sandboxes": count})
    here.engine.live_restore = live_restore
    await here.engine.restart()
    await here.make(count)
    await here.engine.stop()
    outcome.seconds["engine's start"] = await here.engine.start()
    if live_restore:
        outcome.seconds["service back after it"] = await within(PATIENCE_S, lambda: _served_again(here))
        await _all_go_on(here, outcome, "after the restart")
        await _none_lost(here, outcome)
    else:
        await _all_lost(here, outcome, count)
    await here.clear(outcome)
    return outcome


async def frozen(here: Site, count: int, seconds: float) -> Outcome:
    """The engine does nothing for a while; its socket takes connections and answers nothing."""
    outcome = Outcome(f"frozen for {seconds:g} s", counts={"sandboxes": count})
    await here.make(count)
    here.engine.freeze()
    try:
        begun, slowest_s = time.monotonic(), 0.0
        creating = asyncio.create_task(refused(here.create("away")))
        while time.monotonic() - begun < seconds or not creating.done():
            for name in here.names:
                asked = time.monotonic()
                outcome.expect(await here.works(name), f"{name} does not work while the engine is frozen")
                slowest_s = max(slowest_s, time.monotonic() - asked)
            await asyncio.sleep(LOOK_EVERY_S)
        took_s, error = await creating
        outcome.seconds |= {"refusal of a create": took_s, "slowest call meanwhile": slowest_s}
        outcome.expect(error is not None and is_away(error), f"a create on a frozen engine: {error}")
    finally:
        here.engine.thaw()
    outcome.seconds["service back after it"] = await within(PATIENCE_S, lambda: _served_again(here))
    await _all_go_on(here, outcome, "after the freeze")
    await _none_lost(here, outcome)
    await here.clear(outcome)
    return outcome


async def cut_off(here: Site, count: int) -> Outcome:
    """The engine's socket is gone for a while, and with it the engine for who does not know it yet."""
    outcome = Outcome("socket gone and back", counts={"sandboxes": count})
    await here.make(count)
    here.engine.hide()
    try:
        _, error = await refused(here.create("away"))
        if error is None:  # over a connection that it had
            await here.delete("away")
        else:
            outcome.expect(is_away(error), f"a create without a socket: {error}")
        await _all_go_on(here, outcome, "without a socket")
    finally:
        here.engine.show()
    outcome.seconds["service back after it"] = await within(PATIENCE_S, lambda: _served_again(here))
    await _none_lost(here, outcome)
    await here.clear(outcome)
    return outcome


async def full(here: Site, count: int) -> Outcome:
    """The engine's disk is full for a while."""
    outcome = Outcome("disk full", counts={"sandboxes": count})
    await here.make(count)
    before = set(await here.engine.containers())
    ballast = str(here.engine.data / "ballast")
    here.engine.in_its_mounts("sh", "-c", f"cat /dev/zero > {ballast} 2>/dev/null || true")
    try:
        took_s, error = await refused(here.create("away"))
        outcome.seconds["refusal of a create"] = took_s
        told: dict[str, Any] = details(error) if error is not None else {}
        reason = told["ErrorInfo"].reason if told else "none"
        outcome.expect(reason in ("NO_SPACE", "ENGINE_REFUSED"), f"a create on a full disk: {reason} {error}")
        await _all_go_on(here, outcome, "while the disk is full")

        async def as_before() -> bool:
            return set(await here.engine.containers()) == before

        await within(PATIENCE_S, as_before)
    finally:
        here.engine.in_its_mounts("rm", "-f", ballast)
    outcome.seconds["service back after it"] = await within(PATIENCE_S, lambda: _served_again(here))
    await _none_lost(here, outcome)
    await here.clear(outcome)
    return outcome
