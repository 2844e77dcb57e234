"""Images: which one a sandbox runs, and those that callers ask for before they need them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from enclaved.core import identity
from enclaved.core.policy import Policy
from enclaved.core.spec_fields import malformed
from enclaved.errors import ImageNotFound, ImageUnusable, InvalidRequest, PolicyDenied
from enclaved.model import PullProgress, SandboxRequest, SandboxSpec
from enclaved.runtime.base import Image, Runtime


async def image_of(spec: SandboxSpec, runtime: Runtime, *, may_pull: bool) -> Image:
    """Finds the image of a sandbox, and pulls it where the daemon (``may_pull``) and the policy allow that.

    One that is granted with its digest is what has this digest, whatever its name means on the engine by now. Raises
    `ImageUnusable` if it has another one, and what `Runtime.resolve_image` raises.
    """
    may_pull = may_pull and spec.may_pull
    digest, name = spec.image_digest, spec.image.partition("@")[0]
    if not digest:
        return await runtime.resolve_image(spec.image, may_pull=may_pull)
    by_digest = f"{name}@{digest}"
    try:
        found = await runtime.resolve_image(name, may_pull=False)
    except ImageNotFound:
        return await runtime.resolve_image(by_digest, may_pull=may_pull)
    if digest in (found.id, *found.digests):
        return found
    try:
        return await runtime.resolve_image(by_digest, may_pull=False)
    except ImageNotFound:
        has = f"on this engine it has the digest {found.id}, and only {digest} is granted"
        hint = "put that image back, or have the operator grant this one"
        raise ImageUnusable(name, f"{has}; {hint}") from None


class Images:
    """Brings images to the engine, where the operator allows it."""

    def __init__(self, *, runtime: Runtime, policy: Policy, may_pull: bool) -> None:
        self._runtime, self._policy, self._may_pull = runtime, policy, may_pull

    async def pull(self, image: str) -> AsyncGenerator[PullProgress]:
        """Makes sure that the engine has an image ("": the caller's default one); the last that comes has its id.

        One that is there, under its name or an alias, is answered at once. Raises `InvalidRequest`, `PolicyDenied` for
        one that is not on the caller's list, and where pulling is switched off for everybody or for the caller,
        `ImageNotFound`, `ImageUnusable`, `NoSpace`, `EngineUnavailable`.
        """
        who = identity.current()
        wanted = image or self._policy.role(who).limits.image_default
        problems = [replace(each, field="image") for each in malformed(SandboxRequest(image=wanted))]
        if problems:
            raise InvalidRequest(*problems)
        name = self._policy.check_image(wanted, who)
        try:
            found = await self._runtime.resolve_image(name, may_pull=False)
        except ImageNotFound as error:
            if not self._may_pull:
                text = f"image {name[:100]!r} is not on the engine, and this daemon pulls none (setting engine.pull)"
                raise PolicyDenied("image", "image", text) from error
            self._policy.check_pull(wanted, who)
        except InvalidRequest as error:
            raise InvalidRequest(*(replace(each, field="image") for each in error.violations)) from error
        else:
            yield PullProgress(status="Image is on the engine", image_id=found.id)
            return
        async with aclosing(self._runtime.pull_image(name)) as steps:
            async for step in steps:
                yield step
