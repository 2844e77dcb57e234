"""The daemon's networks are there while a sandbox needs them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest

from enclaved.core.networks import NetworkSettings, SandboxNetworks
from enclaved.core.ownership import Ownership
from enclaved.core.record import SandboxRecord
from enclaved.errors import EngineUnavailable, ImageNotFound
from enclaved.metrics import Metrics
from enclaved.model import Network
from enclaved.runtime.base import Image, NetworkRecord, Runtime
from tests.service.core_fakes import SPEC

OURS = Ownership(b"ours")
GUARD = Image("sha256:" + "a" * 64, "guard:1", {}, ())


@dataclass
class Engine:
    """Has networks, of which some are in use."""

    networks: dict[str, Mapping[str, str]] = field(default_factory=dict)
    in_use: set[str] = field(default_factory=set)
    away: bool = False
    has_guard: bool = True

    async def resolve_image(self, image: str, *, may_pull: bool) -> Image:
        assert not may_pull
        if not self.has_guard:
            raise ImageNotFound(image, "build it")
        return replace(GUARD, name=image)

    async def list_networks(self) -> list[NetworkRecord]:
        if self.away:
            raise EngineUnavailable("unix:///nowhere", "no answer")
        return [NetworkRecord(name, labels) for name, labels in self.networks.items()]

    async def remove_network(self, network_id: str) -> bool:
        if network_id in self.in_use:
            return False
        del self.networks[network_id]
        return True


def record(network: Network = Network.BRIDGE, **fields: Any) -> SandboxRecord:
    return SandboxRecord(
        id="box",
        number=1,
        spec=replace(SPEC, network=network),
        adjustments=(),
        labels={},
        uid=5000,
        directory=Path("/nowhere"),
        metrics=Metrics(version="0", tools=()),
        **fields,
    )


@pytest.fixture
def engine() -> Engine:
    theirs = {**OURS.labels("", 0), "enclaved.hmac": "0" * 64}
    networks = {"one": OURS.labels("", 0), "two": OURS.labels("", 0), "theirs": theirs}
    return Engine({**networks, "foreign": Ownership(b"another").labels("", 0)})


@pytest.fixture
def networks(engine: Engine) -> SandboxNetworks:
    settings = NetworkSettings("guard:1", ("10.0.0.53",), may_pull=False)
    return SandboxNetworks(cast("Runtime", engine), OURS, settings)


async def test_a_sandbox_without_a_network_needs_none(networks: SandboxNetworks):
    assert await networks.plan(record(Network.NONE)) is None


async def test_a_plan_names_the_guard_the_name_servers_and_whose_network_it_is(networks: SandboxNetworks):
    plan = await networks.plan(record())
    assert plan is not None
    assert (plan.guard.name, plan.resolvers) == ("guard:1", ("10.0.0.53",))
    assert OURS.proves(plan.labels)


async def test_the_last_sandbox_takes_the_networks_along(networks: SandboxNetworks, engine: Engine):
    one, two = record(), record()
    networks.take_up(record(Network.NONE, container_id="c"))
    networks.take_up(record())  # it has no container
    networks.take_up(replace_container(two))
    await networks.plan(one)
    await networks.leave(one)
    assert await networks.sweep() == []
    assert len(engine.networks) == 4
    await networks.leave(two)
    assert engine.networks.keys() == {"theirs", "foreign"}


def replace_container(kept: SandboxRecord) -> SandboxRecord:
    kept.container_id = "c" * 64
    return kept


async def test_a_network_in_use_stays_and_an_engine_that_is_away_is_asked_later(
    networks: SandboxNetworks, engine: Engine
):
    box = record()
    await networks.plan(box)
    engine.away = True
    await networks.leave(box)
    engine.away, engine.in_use = False, {"two"}
    assert await networks.sweep() == ["one"]
    engine.in_use.clear()
    assert await networks.sweep() == ["two"]


async def test_without_its_guard_there_is_no_network(networks: SandboxNetworks, engine: Engine):
    engine.has_guard = False
    with pytest.raises(ImageNotFound, match=r"network\.guard_image"):
        await networks.plan(record())
