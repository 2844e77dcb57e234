"""A sandbox whose image is granted with a digest runs what has this digest, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from enclaved.core.identity import acting_as
from enclaved.core.images import Images, image_of
from enclaved.core.policy import Policy, PolicyLimits, built_in_rules
from enclaved.errors import ImageNotFound, ImageUnusable, PolicyDenied
from enclaved.model import Identity, SandboxRequest, SandboxSpec
from enclaved.runtime.base import Image
from enclaved.tools.registry import ToolRegistry

PINNED = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64


class FakeRuntime:
    """An engine with images by name, and others that a registry has."""

    def __init__(self, here: dict[str, Image], away: dict[str, Image] | None = None) -> None:
        self.here, self.away = here, away or {}
        self.pulled: list[str] = []

    async def resolve_image(self, image: str, *, may_pull: bool) -> Image:
        if image in self.here:
            return self.here[image]
        if not may_pull or image not in self.away:
            raise ImageNotFound(image, "it is not there")
        self.pulled.append(image)
        return self.away[image]


def image(image_id: str, *digests: str) -> Image:
    return Image(image_id, "tools:1", {}, (), digests)


def spec(**changes: Any) -> SandboxSpec:
    rules = built_in_rules(PolicyLimits())
    listed = replace(rules.roles["default"], images=(f"tools:1@{PINNED}", "**"), **changes)
    rules = replace(rules, roles={**rules.roles, "default": listed})
    policy = Policy(PolicyLimits(), ToolRegistry.built_in(), rules=rules)
    return policy.admit(SandboxRequest(image="tools:1")).spec


async def found(runtime: Any, wanted: SandboxSpec, *, may_pull: bool = True) -> Image:
    return await image_of(wanted, runtime, may_pull=may_pull)


@pytest.mark.parametrize("here", [image(PINNED), image(OTHER, PINNED), image(OTHER, OTHER, PINNED)])
async def test_the_digest_is_that_of_the_engine_or_of_a_registry(here: Image) -> None:
    runtime = FakeRuntime({"tools:1": here})
    assert await found(runtime, spec()) is here


async def test_a_tag_that_was_moved_is_not_followed_and_nothing_is_pulled() -> None:
    runtime = FakeRuntime({"tools:1": image(OTHER)}, {f"tools:1@{PINNED}": image(PINNED), "tools:1": image(PINNED)})
    with pytest.raises(ImageUnusable, match=f"only {PINNED} is granted"):
        await found(runtime, spec())
    assert runtime.pulled == []


async def test_what_a_moved_tag_meant_before_is_still_run_if_it_is_there() -> None:
    here = image(PINNED)
    runtime = FakeRuntime({"tools:1": image(OTHER), f"tools:1@{PINNED}": here})
    assert await found(runtime, spec()) is here


async def test_a_pinned_image_is_pulled_by_its_digest_by_who_may() -> None:
    away = {f"tools:1@{PINNED}": image(PINNED), "tools:1": image(OTHER)}
    runtime = FakeRuntime({}, away)
    for wanted, may_pull in ((spec(may_pull=False), True), (spec(), False)):
        with pytest.raises(ImageNotFound):
            await found(runtime, wanted, may_pull=may_pull)
    assert (await found(runtime, spec())).id == PINNED
    assert runtime.pulled == [f"tools:1@{PINNED}"]


async def test_an_image_without_a_pin_is_whatever_its_name_means() -> None:
    here = image(OTHER)
    runtime = FakeRuntime({"other:1": here})
    assert await found(runtime, replace(spec(), image="other:1", image_digest="")) is here


async def test_a_role_that_pulls_nothing_is_told_so_and_sees_what_is_there() -> None:
    rules = built_in_rules(PolicyLimits())
    quiet = replace(rules.roles["default"], name="quiet", may_pull=False, images=("here:*", "away:*"))
    policy = Policy(
        PolicyLimits(), ToolRegistry.built_in(), rules=replace(rules, roles={**rules.roles, "quiet": quiet})
    )
    runtime: Any = FakeRuntime({"here:1": image(OTHER), "evil:1": image(OTHER)}, {"away:1": image(OTHER)})
    images = Images(runtime=runtime, policy=policy, may_pull=True)
    with acting_as(Identity("quiet", "quiet")):
        assert [step.image_id async for step in images.pull("here:1")] == [OTHER]
        for name, rule in (("away:1", "pull"), ("evil:1", "image"), ("evil:2", "image")):
            with pytest.raises(PolicyDenied) as caught:
                [step async for step in images.pull(name)]
            assert caught.value.rule == rule
    assert runtime.pulled == []
