"""Plays attacks one by one: makes a sandbox, lets the attack go on in it, looks from outside, and has it judged."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

import grpc.aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.config import Settings
from enclaved.doctor import host_view
from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import Attack, Evidence, Judgement, Outcome, Program, inconclusive, judge, told_in
from enclaved.doctor.attacks.resources import CPUS, MEMORY_BYTES, PIDS, TMP_BYTES, WORKING_DIR_BYTES
from enclaved.doctor.attacks.tenancy import NEIGHBOUR
from enclaved.doctor.connection import Daemon
from enclaved.doctor.engine import EngineSilent, EngineView
from enclaved.doctor.running import Gathered, execute, spec_of
from enclaved.doctor.witness import Witness, new_nonce

AT_ONCE: Final = 3
"""Attacks that go on at the same time, but for those that must be alone."""
ATTACK_S: Final = 150.0
"""How long one attack may take, with everything around it."""
NEIGHBOUR_S: Final = 900.0
READY_S: Final = 60.0
WORKS_AGAIN_S: Final = 10.0
"""How long a sandbox may take until ordinary code works again: executions that end may count against its limits."""
WORKS_EVERY_S: Final = 0.5
_MEMORY_EVERY_S = 0.05
_NEIGHBOUR_PORT: Final = 45999
_WORKS: Final = Program("import ctypes\nctypes.CDLL(None).inotify_init1(0) >= 0 and tell('works', 6 * 7)\n")


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one attack. No judgement: it was not played, for the reason given."""

    attack: Attack
    judgement: Judgement | None
    seconds: float = 0.0
    not_run: str = ""

    @property
    def is_good(self) -> bool:
        """Whether nothing got out; also if it was not played."""
        return self.judgement is None or self.judgement.outcome is Outcome.CONTAINED


@dataclass
class Stage:
    """A daemon under attack, a neighbour, and witnesses."""

    daemon: Daemon
    witness: Witness
    engine: EngineView | None
    neighbour_nonce: str
    neighbour_id: str = ""
    sees_host: bool = False
    spec: sandbox_pb.SandboxSpec = field(default_factory=sandbox_pb.SandboxSpec)
    """What every sandbox here is."""

    def missing(self, attack: Attack) -> str:
        """Returns why an attack cannot be played here; empty if it can."""
        there = {
            "host": self.sees_host,
            "log": self.daemon.log is not None,
            "memory": self.daemon.memory_bytes() is not None,
            "http": self.daemon.http_socket is not None,
        }
        lacking = sorted(need for need in attack.needs if not there[need])
        words = {
            "host": "the host's view of processes",
            "log": "the daemon's log",
            "memory": "the daemon's memory",
            "http": "the HTTP API over a unix socket",
        }
        return f"it needs {' and '.join(words[need] for need in lacking)}" if lacking else ""

    async def play(self, attack: Attack) -> Result:
        """Plays one attack within 150 s. Never raises for what the attack or the daemon does."""
        started = time.monotonic()
        act = self.act()
        try:
            async with asyncio.timeout(ATTACK_S):
                judgement = judge(attack, await self._play(attack, act))
        except TimeoutError:
            judgement = inconclusive(f"it was not over after {ATTACK_S:g} s")
        except (grpc.aio.AioRpcError, EngineSilent, OSError) as error:
            judgement = inconclusive(_said(error))
        finally:
            with contextlib.suppress(TimeoutError, grpc.aio.AioRpcError):
                async with asyncio.timeout(ATTACK_S):
                    await act.close()
        return Result(attack, judgement, round(time.monotonic() - started, 2))

    async def play_all(self, attacks: Sequence[Attack], done: Callable[[Result], None]) -> list[Result]:
        """Plays attacks, some at a time; ``done`` is told of each. Returns the results in the order of the attacks."""
        results: dict[str, Result] = {}
        places = asyncio.Semaphore(AT_ONCE)

        async def one(attack: Attack) -> None:
            missing = self.missing(attack)
            async with places:
                result = Result(attack, None, not_run=missing) if missing else await self.play(attack)
            results[attack.id] = result
            done(result)

        await asyncio.gather(*(one(attack) for attack in attacks if not attack.alone))
        for attack in attacks:
            if attack.alone:
                await one(attack)
        return [results[attack.id] for attack in attacks]

    def act(self) -> Act:
        """Makes a client for one attack."""
        nonce = new_nonce()
        facts = {
            "nonce": nonce,
            "host_files": [str(self.witness.file)],
            "host_ports": self.witness.ports,
            "host_sockets": [str(self.witness.socket_path)],
            "abstract": [self.witness.abstract],
            **self.neighbour_facts(),
        }
        return Act(self.daemon, nonce, facts, self.spec, engine=self.engine)

    def neighbour_facts(self) -> dict[str, Any]:
        """Returns what programs are told of the neighbour."""
        name = self.neighbour_nonce
        return {"neighbour": name, "neighbour_port": _NEIGHBOUR_PORT, "segment": int(name[1:8], 16)}

    async def _play(self, attack: Attack, act: Act) -> Evidence:
        act.sandbox_id = await act.sandbox()
        seen: dict[str, Any] = {}
        mark = self.witness.mark()

        async def look() -> None:
            seen["status"] = await act.status(act.nonce, act.sandbox_id)
            seen["neighbour_status"] = await act.status(self.neighbour_nonce, self.neighbour_id)
            seen["neighbour_works"] = await self.works(act, self.neighbour_id)

        async with _growing(self.daemon) as grown:
            if attack.program is not None:
                run = await execute(
                    self.daemon.stubs, act.sandbox_id, attack.program, act.facts_for_programs, on_ready=look
                )
                evidence = act.evidence(run)
            else:
                assert attack.act is not None
                evidence = await attack.act(act)
        left = await act.processes(act.nonce, act.sandbox_id) if attack.looks_for_processes else None
        neighbour_works = seen.pop("neighbour_works", True) and await self.works(act, self.neighbour_id)
        output = evidence.run.stdout + evidence.run.stderr if evidence.run else b""
        secrets = [name for name, text in self._secrets().items() if text.encode() in output]
        return replace(
            evidence,
            **seen,
            works=await self.works(act, act.sandbox_id),
            neighbour_works=neighbour_works,
            daemon_lives=await self.daemon.lives(),
            processes_left=left,
            contacts=self.witness.contacts(act.nonce, mark),
            secrets=tuple(secrets),
            memory_growth_bytes=grown(),
            log_has_marker=await self.daemon.log_has(act.nonce),
        )

    async def works(self, act: Act, sandbox_id: str) -> bool:
        """Tells whether ordinary code works in a sandbox, now or a moment after what was done to it has ended."""
        deadline = time.monotonic() + WORKS_AGAIN_S
        while True:
            run = await act.run(_WORKS, sandbox_id)
            if act.told(run).get("works") == 42:
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(WORKS_EVERY_S)

    def _secrets(self) -> dict[str, str]:
        return {"a file of the host": self.witness.secret, "a file of a neighbour": f"of-{self.neighbour_nonce}"}


def small_spec(settings: Settings) -> sandbox_pb.SandboxSpec:
    """Returns what the sandboxes of attacks are: small, so that limits are met soon, and no more than is granted."""
    limits = settings.limits
    return sandbox_pb.SandboxSpec(
        image=settings.images.default,
        memory_limit_bytes=min(MEMORY_BYTES, limits.memory_max_bytes),
        working_dir_size_bytes=WORKING_DIR_BYTES,
        tmp_size_bytes=TMP_BYTES,
        pids_limit=min(PIDS, limits.pids_max),
        cpu_limit=min(CPUS, limits.cpu_max),
        timeout_s=min(60.0, limits.timeout_max_s),
        ttl_s=min(NEIGHBOUR_S, limits.ttl_max_s),
    )


@asynccontextmanager
async def stage(daemon: Daemon, engine: EngineView | None, found: Witness, settings: Settings) -> AsyncIterator[Stage]:
    """Makes the neighbour and waits until it is ready.

    Raises `grpc.aio.AioRpcError` if there can be no sandbox, `NeighbourFailed` if its program does not start.
    """
    made = Stage(daemon, found, engine, new_nonce("n"), spec=small_spec(settings))
    act = made.act()
    try:
        made.neighbour_id = await act.sandbox()
        async with _neighbour(made):
            container = None if engine is None else await asyncio.to_thread(engine.container_of, made.neighbour_id)
            made.sees_host = container is not None and await asyncio.to_thread(host_view.can_see, container)
            yield made
    finally:
        await act.close()


class NeighbourFailed(Exception):
    """The program in the neighbouring sandbox did not start; the text is how it ended."""


@asynccontextmanager
async def _neighbour(made: Stage) -> AsyncIterator[None]:
    """Runs the neighbour's program for as long as the block runs, and writes down whom it met."""
    facts = {**made.neighbour_facts(), "nonce": made.neighbour_nonce}
    facts["neighbour_secret"] = f"of-{made.neighbour_nonce}"
    program = Program(NEIGHBOUR, stdin=b"", ends_input=False, timeout_s=0)
    gathered = Gathered(made.neighbour_nonce)
    call = made.daemon.stubs.executions.Execute()

    async def watch() -> None:
        known = 0
        try:
            start = spec_of(made.neighbour_id, program, facts)
            await call.write(execution_pb.ExecuteRequest(start=start))
            while (answer := await call.read()) is not grpc.aio.EOF:
                assert isinstance(answer, execution_pb.ExecuteResponse)
                gathered.take(answer.event)
                told = told_in(gathered.run().stdout, made.neighbour_nonce)
                met = [name.removeprefix("contact-") for name in told if name.startswith("contact-")]
                for text in met[known:]:
                    made.witness.met("a neighbour", "" if text == "somebody" else text)
                known = len(met)
        finally:
            gathered.is_ready.set()

    watching = asyncio.create_task(watch())
    try:
        async with asyncio.timeout(READY_S):
            await gathered.is_ready.wait()
        if watching.done() or gathered.finished is not None:
            raise NeighbourFailed(f"the program beside the attacks ended at once: {gathered.run().said()}")
        yield
    finally:
        call.cancel()
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await watching


@asynccontextmanager
async def _growing(daemon: Daemon) -> AsyncIterator[Callable[[], int | None]]:
    """Looks how much the daemon's memory grows; what it lends tells it, in bytes, ``None`` if that cannot be seen."""
    before = daemon.memory_bytes()
    most = before or 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, daemon.memory_bytes() or 0)
            await asyncio.sleep(_MEMORY_EVERY_S)

    watching = asyncio.create_task(watch())
    try:
        yield lambda: None if before is None else most - before
    finally:
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching


def _said(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"the daemon answered {error.code().name}: {str(error.details())[:300]}"
    return f"{type(error).__name__}: {error}"[:300]
