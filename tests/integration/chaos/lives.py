"""Clients that live with sandboxes and pools while daemons die: they make, use, change and delete them, at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping

from grpc import aio

from tests.integration.failures.ground import Ground
from tests.service.crash.client import Client, blob, program
from tests.service.crash.history import History
from tests.service.crash.look import docker_containers, look_round

SPEC: Mapping[str, int] = {"memory_limit_bytes": 96 * 1024 * 1024}
STEPS = (2, 6)
"""What a client does with a sandbox before it deletes it, or does not."""
KEPT = 0.1
SETTLE_S = 60.0
POOL = "chaos"
POOL_SIZE = 2


class Life:
    """One client with a sandbox after the other. What cannot be is in the history."""

    def __init__(self, address: str, history: History, name: str, chance: random.Random) -> None:
        self._client = Client(address, history, name)
        self._history, self._name, self._chance = history, name, chance
        self._number = 0

    async def live(self, over: asyncio.Event) -> None:
        """Goes on until it is over."""
        try:
            while not over.is_set():
                await self._one_sandbox(over)
        except (aio.AioRpcError, TimeoutError) as error:
            self._history.troubles.append(f"{self._name}: {type(error).__name__} {error}")

    async def _one_sandbox(self, over: asyncio.Event) -> None:
        self._number += 1
        name = f"{self._name}-{self._number}"
        keeps = self._chance.random() < 0.5
        box = await self._client.create(name, remove_on_exit=not keeps, **SPEC)
        for step in range(self._chance.randint(*STEPS)):
            if not over.is_set():
                await self._do_something(box, f"{name}-{step}")
        if self._chance.random() > KEPT:
            await self._client.change("delete", box)
            await self._client.look(box)

    async def _do_something(self, box: str, name: str) -> None:
        match self._chance.choice(["run", "run", "run once", "write", "write", "update", "pause", "stop", "pool"]):
            case "run":
                run, spec = program(name, box, lines=200, pause_s=self._chance.choice([0, 0.003]))
                await self._client.run(run, spec)
            case "run once":
                run, spec = program(name, box)
                await self._client.run_once(run, spec)
            case "write":
                path, size = self._chance.choice("abc"), self._chance.randrange(200_000)
                await self._client.write(box, path, blob(name, size))
            case "update":
                labels = {"request": name.rpartition("-")[0], "step": name}
                await self._client.update(box, labels, pids_limit=self._chance.choice([128, 256]))
            case "pause":
                await self._client.change("pause", box)
                await self._client.change("resume", box)
            case "stop":
                await self._client.change("stop", box)
                await self._client.change("start", box)
            case _:
                await self._use_pool(name)

    async def _use_pool(self, name: str) -> None:
        code = f"import os\nprint({name!r}, os.listdir())\nopen('left', 'w').write('x')"
        answer = await self._client.run_in_pool(POOL, code)
        if answer is None:
            await self._client.make_pool(POOL, POOL_SIZE, **SPEC)
        elif (said := answer.run.stdout.decode()) != f"{name} []\n":
            self._history.troubles.append(f"{name} in the pool said {said!r} and ended as {answer.run.finished}")


async def faults(address: str, history: History, ground: Ground) -> list[str]:
    """Compares everything that there is with what clients heard; what happens in the background may take a while."""
    client = Client(address, history, "checker")
    state_dir = ground.folder / "e"
    # Nobody else touches the sandboxes of a client, and what it asks for makes sense.
    refused = history.refused("look", "read", "run in pool")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + SETTLE_S
    while True:
        found = history.faults(await look_round(client, history, state_dir, docker_containers(state_dir)))
        if not found or loop.time() > deadline:
            return [*found, *refused]
        await asyncio.sleep(0.5)


async def clear(address: str) -> None:
    """Deletes all pools and sandboxes."""
    client = Client(address, History(), "end")
    for pool_id in await client.pools():
        await client.delete_pool(pool_id)
    for sandbox_id in await client.list():
        await client.change("delete", sandbox_id)
