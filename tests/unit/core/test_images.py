"""Pulls as the operator allows them."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from enclaved.core.images import Images
from enclaved.core.policy import Policy, PolicyLimits
from enclaved.errors import ImageNotFound, InvalidRequest, PolicyDenied
from enclaved.model import PullProgress
from enclaved.runtime.base import Image
from enclaved.tools.registry import ToolRegistry

ID = "sha256:" + "0" * 64


class FakeRuntime:
    """Has one image, and can pull another."""

    def __init__(self) -> None:
        self.pulled: list[str] = []

    async def resolve_image(self, image: str, *, may_pull: bool) -> Image:
        assert not may_pull
        if " " in image:
            raise InvalidRequest.of("spec.image", "is not an image name")
        if image != "here:1":
            raise ImageNotFound(image, "it is not on the engine")
        return Image(ID, image, {}, ())

    async def pull_image(self, image: str) -> AsyncGenerator[PullProgress]:
        self.pulled.append(image)
        yield PullProgress("0123456789ab", "Downloading", 1, 2)
        yield PullProgress(image_id=ID)


def images(runtime: FakeRuntime, *, may_pull: bool = True) -> Images:
    policy = Policy(PolicyLimits(image_default="here:1"), ToolRegistry.built_in())
    return Images(runtime=runtime, policy=policy, may_pull=may_pull)  # type: ignore[arg-type]


@pytest.mark.parametrize("may_pull", [True, False])
@pytest.mark.parametrize("name", ["here:1", ""])
async def test_an_image_that_is_there_is_answered_without_a_pull(name: str, may_pull: bool) -> None:
    runtime = FakeRuntime()
    steps = [step async for step in images(runtime, may_pull=may_pull).pull(name)]
    assert [step.image_id for step in steps] == [ID]
    assert runtime.pulled == []


async def test_an_image_that_is_not_there_is_pulled() -> None:
    runtime = FakeRuntime()
    steps = [step async for step in images(runtime).pull("away:1")]
    assert [step.image_id for step in steps] == ["", ID]
    assert runtime.pulled == ["away:1"]


async def test_where_pulling_is_switched_off_the_rule_is_named() -> None:
    runtime = FakeRuntime()
    with pytest.raises(PolicyDenied, match=r"engine\.pull") as denied:
        await anext(images(runtime, may_pull=False).pull("away:1"))
    assert denied.value.metadata == {"rule": "image", "field": "image"}
    assert runtime.pulled == []


async def test_what_is_no_name_is_refused_by_the_field_of_this_request() -> None:
    with pytest.raises(InvalidRequest) as refused:
        await anext(images(FakeRuntime()).pull("no name"))
    assert [violation.field for violation in refused.value.violations] == ["image"]
