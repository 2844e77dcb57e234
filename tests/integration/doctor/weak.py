"""A container without protections, in which the doctor's judges must see every program escape.

It is what an engine makes by default, and less: root, no filter of system calls, a network, no limits, a directory of
the host, and a neighbour in the same container. The programs are the doctor's own and do no harm anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enclaved.doctor import host_view
from enclaved.doctor.attacks.base import Attack, Evidence, Judgement, Program, Run, judge, told_in
from enclaved.doctor.attacks.prelude import with_prelude
from enclaved.doctor.attacks.tenancy import NEIGHBOUR
from enclaved.doctor.witness import Witness, new_nonce, witness

IMAGE = "ms-enclave/python:3.11"
NEIGHBOUR_PORT = 45998
PATIENCE_S = 120.0
OPTIONS = (
    *("--security-opt", "seccomp=unconfined", "--security-opt", "systempaths=unconfined"),
    *("--cap-add", "SYS_ADMIN", "--cap-add", "NET_ADMIN", "--pids-limit", "1000", "--memory", "2g"),
)


async def docker(*arguments: str) -> str:
    """Runs a command of the engine's client and returns what it printed."""
    process = await asyncio.create_subprocess_exec(
        "docker", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    printed, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return printed.decode().strip()


@dataclass
class WeakPlace:
    """The container, and whoever waits for visitors from it."""

    name: str
    container: dict[str, Any]
    witness: Witness
    neighbour_nonce: str

    async def judged(self, attack: Attack) -> Judgement:
        """Runs the program of an attack here and has it judged by the attack's own judge."""
        assert attack.program is not None
        nonce, mark = new_nonce(), self.witness.mark()
        seen: dict[str, Any] = {}

        async def look() -> None:
            pids = host_view.named(self.container, nonce)
            seen["status"] = host_view.status(pids[0]) if pids else None
            others = host_view.named(self.container, self.neighbour_nonce)
            seen["neighbour_status"] = host_view.status(others[0]) if others else None

        run = await self.run(attack.program, self.facts(nonce), look)
        left = tuple(str(pid) for pid in host_view.named(self.container, nonce))
        texts = {"a file of the host": self.witness.secret, "a file of a neighbour": f"of-{self.neighbour_nonce}"}
        evidence = Evidence(
            run=run,
            told=told_in(run.stdout, nonce),
            works=True,
            neighbour_works=True,
            processes_left=left,
            contacts=self.witness.contacts(nonce, mark),
            secrets=tuple(name for name, text in texts.items() if text.encode() in run.stdout),
            **seen,
        )
        return judge(attack, evidence)

    def facts(self, nonce: str) -> dict[str, Any]:
        """Returns what programs here are told."""
        return {
            "nonce": nonce,
            "host_files": [str(self.witness.file)],
            "host_ports": self.witness.ports,
            "host_sockets": [str(self.witness.socket_path)],
            "abstract": [self.witness.abstract],
            "neighbour": self.neighbour_nonce,
            "neighbour_port": NEIGHBOUR_PORT,
            "segment": int(self.neighbour_nonce[1:8], 16),
        }

    async def run(self, program: Program, facts: dict[str, Any], look: Any = None) -> Run:
        """Runs a program to its end, or to its timeout."""
        text = with_prelude(program, facts)
        command = ("sh", "-c", text) if program.is_shell else ("python3", "-c", text)
        process = await asyncio.create_subprocess_exec(
            *("docker", "exec", "-i", "--workdir", "/work", "--env", "HOME=/work", self.name, *command),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        output = b""
        if program.look_when_ready:
            async with asyncio.timeout(PATIENCE_S):
                while not told_in(output, str(facts["nonce"])).get("ready"):
                    piece = await process.stdout.read(65536)
                    output += piece
                    if not piece:
                        break
            await look()
        rest, errors = await process.communicate(b"")
        output += rest
        return Run(
            verdict="EXITED",
            exit_code=process.returncode,
            stdout=output,
            stderr=errors,
            stdout_bytes=len(output),
            stdout_sha256=hashlib.sha256(output).hexdigest(),
        )


@asynccontextmanager
async def weak_place(directory: Path) -> AsyncIterator[WeakPlace]:
    """Makes the container with its network and its neighbour; removes all of it."""
    name = f"mse-weak-{new_nonce()}"
    await docker("network", "create", name)
    try:
        networks = json.loads(await docker("network", "inspect", name))
        gateway = networks[0]["IPAM"]["Config"][0]["Gateway"]
        async with witness(directory, ("127.0.0.1", gateway)) as found:
            mount = f"type=bind,source={directory},target={directory}"
            await docker(
                *("run", "--detach", "--name", name, "--network", name, "--mount", mount, *OPTIONS),
                *("--workdir", "/work", IMAGE, "sleep", "600"),
            )
            container = json.loads(await docker("inspect", name))[0]
            place = WeakPlace(name, container, found, new_nonce("n"))
            async with _neighbour(place):
                yield place
    finally:
        with contextlib.suppress(AssertionError):
            await docker("rm", "--force", "--volumes", name)
        await docker("network", "rm", name)


@asynccontextmanager
async def _neighbour(place: WeakPlace) -> AsyncIterator[None]:
    facts = {**place.facts(place.neighbour_nonce), "neighbour_secret": f"of-{place.neighbour_nonce}"}
    process = await asyncio.create_subprocess_exec(
        *("docker", "exec", "-i", "--workdir", "/work", place.name, "python3", "-c"),
        with_prelude(Program(NEIGHBOUR), facts),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    start = f"@{place.neighbour_nonce} ".encode()

    async def listen() -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            for told in told_in(line, place.neighbour_nonce):
                if told.startswith("contact-"):
                    place.witness.met("a neighbour", told.removeprefix("contact-"))

    async with asyncio.timeout(PATIENCE_S):
        while (line := await process.stdout.readline()) and not (line.startswith(start) and b"ready" in line):
            pass
    assert line, "the neighbour ended"
    listening = asyncio.create_task(listen())
    try:
        yield
    finally:
        process.stdin.close()
        await process.wait()
        await listening
