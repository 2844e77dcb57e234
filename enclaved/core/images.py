"""Images that callers ask for before they need them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from enclaved.core.policy import Policy
from enclaved.errors import ImageNotFound, InvalidRequest, PolicyDenied
from enclaved.model import PullProgress
from enclaved.runtime.base import Runtime


class Images:
    """Brings images to the engine, where the operator allows it."""

    def __init__(self, *, runtime: Runtime, policy: Policy, may_pull: bool) -> None:
        self._runtime, self._policy, self._may_pull = runtime, policy, may_pull

    async def pull(self, image: str) -> AsyncGenerator[PullProgress]:
        """Makes sure that the engine has an image ("": the default one); the last that comes has its id.

        One that is there, under its name or an alias, is answered at once. Raises `InvalidRequest`, `PolicyDenied`
        where pulling is switched off, `ImageNotFound`, `ImageUnusable`, `NoSpace`, `EngineUnavailable`.
        """
        name = image or self._policy.limits.image_default
        try:
            found = await self._runtime.resolve_image(name, may_pull=False)
        except ImageNotFound as error:
            if not self._may_pull:
                text = f"image {name[:100]!r} is not on the engine, and this daemon pulls none (setting engine.pull)"
                raise PolicyDenied("image", "image", text) from error
        except InvalidRequest as error:
            raise InvalidRequest(*(replace(each, field="image") for each in error.violations)) from error
        else:
            yield PullProgress(status="Image is on the engine", image_id=found.id)
            return
        async with aclosing(self._runtime.pull_image(name)) as steps:
            async for step in steps:
                yield step
