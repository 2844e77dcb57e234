"""Finds the image of a sandbox: by its name, by its alias, else by pulling it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import aiodocker
from aiodocker.jsonstream import json_stream_stream

from enclaved.errors import ImageNotFound, ImageUnusable, InvalidRequest
from enclaved.model import PullProgress
from enclaved.runtime.base import Image
from enclaved.runtime.docker.engine import Engine
from enclaved.runtime.docker.errors import CONNECTION_FAILED, is_no_space
from enclaved.runtime.docker.options import usable_volumes
from enclaved.runtime.docker.pulls import Pull

PULLS_AT_ONCE = 2
_REFERENCE_LENGTH_MAX = 512
_ALNUM = "[a-zA-Z0-9]"
_HOST = rf"{_ALNUM}+(?:-+{_ALNUM}+)*(?:\.{_ALNUM}+(?:-+{_ALNUM}+)*)*(?::[0-9]{{1,5}})?"
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    rf"(?:{_HOST}/)?{_PART}(?:/{_PART})*(?P<tag>:[a-zA-Z0-9_][a-zA-Z0-9_.-]{{0,127}})?(?P<digest>@sha256:[0-9a-f]{{64}})?"
)
_IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
_LIKE_AN_ID = re.compile(r"[0-9a-f]+")
"""A name that an engine would also take for the begin of some image's id, which nobody has decided on."""


def checked_reference(image: str) -> str:
    """Returns the image's name. Raises `InvalidRequest` if it is none, so that nothing odd gets into a URL."""
    if len(image) <= _REFERENCE_LENGTH_MAX and (_REFERENCE.fullmatch(image) or _IMAGE_ID.fullmatch(image)):
        return image
    shown = image if len(image) <= 80 else image[:80] + "..."
    raise InvalidRequest.of("spec.image", f"{shown!r} is not an image name; write name:tag, as python:3.11-slim")


def familiar(image: str) -> str:
    """The short form that all spellings of a name share: ``docker.io/library/python`` is ``python:latest``."""
    for prefix in ("docker.io/", "index.docker.io/", "library/"):
        image = image.removeprefix(prefix)
    found = _REFERENCE.fullmatch(image)
    return f"{image}:latest" if found and not found["tag"] and not found["digest"] else image


class Images:
    """The images of one engine."""

    def __init__(self, engine: Engine, aliases: Mapping[str, str]) -> None:
        self._engine = engine
        self._aliases = {familiar(checked_reference(name)): checked_reference(to) for name, to in aliases.items()}
        self._pulls: dict[str, Pull] = {}
        self._pulling = asyncio.Semaphore(PULLS_AT_ONCE)

    async def resolve(self, image: str, *, may_pull: bool) -> Image:
        """See `Runtime.resolve_image`. Raises `InvalidRequest` too, for what is no name."""
        name = checked_reference(image)
        alias = self._aliases.get(familiar(name))
        for candidate in (name, alias):
            if candidate is not None and (found := await self._inspect(candidate)) is not None:
                return _image(candidate, found)
        if not may_pull or _IMAGE_ID.fullmatch(name):
            raise ImageNotFound(name, _hint(name, alias, "it is not on the engine, and pulling is not allowed here"))
        # Who asks for one that is being pulled waits for the same pull; leaving does not end it.
        await asyncio.shield(self._pull_once(name, alias).task)
        if (found := await self._inspect(name)) is None:
            raise ImageNotFound(name, _hint(name, alias, "the pull ended without it"))
        return _image(name, found)

    async def pull(self, image: str) -> AsyncGenerator[PullProgress]:
        """See `Runtime.pull_image`."""
        name = checked_reference(image)
        pull = self._pull_once(name, self._aliases.get(familiar(name)))
        async with aclosing(pull.follow()) as steps:
            async for step in steps:
                yield step
        found = await self.resolve(name, may_pull=False)
        yield PullProgress(status="Image is on the engine", image_id=found.id)

    async def tag_of(self, image_id: str) -> str:
        """A name that people know for an image's digest, if it has one."""
        data = await self._inspect(checked_reference(image_id)) or {}
        return next(iter(data.get("RepoTags") or ()), image_id)

    async def close(self) -> None:
        """Gives up running pulls."""
        pulls = [pull.task for pull in self._pulls.values()]
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    async def _inspect(self, name: str) -> dict[str, Any] | None:
        async with self._engine.calling("look at an image", self._engine.deadlines.query_s) as docker:
            try:
                asked = f"{name}:latest" if _LIKE_AN_ID.fullmatch(name) else name
                found: dict[str, Any] = await docker.images.inspect(asked)
            except aiodocker.DockerError as error:
                if error.status == 404:
                    return None
                raise
        return found

    def _pull_once(self, name: str, alias: str | None) -> Pull:
        """Finds the pull of an image that runs, or starts one."""
        if (pull := self._pulls.get(name)) is None:
            pull = self._pulls[name] = Pull(name, lambda heard: self._pull(name, alias, heard))
            pull.task.add_done_callback(lambda done: self._forget_pull(name, done))
        return pull

    def _forget_pull(self, name: str, done: asyncio.Task[None]) -> None:
        del self._pulls[name]
        if not done.cancelled():
            done.exception()  # Looked at, so that asyncio does not complain where everybody has left.

    async def _pull(self, name: str, alias: str | None, heard: Callable[[object], None]) -> None:
        async with self._engine.calling(f"pull image {name}", self._engine.deadlines.pull_s) as docker, self._pulling:
            try:
                # Not by `docker.images.pull`: it leaves the response open where it breaks off, and the engine pulls on.
                query = docker._query("images/create", "POST", params=_parameters(name), timeout=None)  # noqa: SLF001
                async with query as response:
                    try:
                        async for message in json_stream_stream(response):
                            heard(message)
                    finally:
                        response.close()
            except aiodocker.DockerError as error:
                if error.status == CONNECTION_FAILED or is_no_space(error):
                    raise
                why = f"it cannot be pulled ({error.message.strip()})"
                raise ImageNotFound(name, _hint(name, alias, why)) from error


def _parameters(name: str) -> dict[str, str]:
    """What a pull asks for: the tag ``latest`` where the name has none, since an engine would pull all of them."""
    found = _REFERENCE.fullmatch(name)
    tag = {"tag": "latest"} if found and not found["tag"] and not found["digest"] else {}
    return {"fromImage": name, **tag}


def _image(name: str, data: Mapping[str, Any]) -> Image:
    """Reads what an engine says of an image; everything in it is the image supplier's word."""
    if (system := data.get("Os") or "linux") != "linux":
        raise ImageUnusable(name, f"it was built for {system}, and sandboxes run Linux images")
    config = data.get("Config") or {}
    pairs = (entry.partition("=") for entry in config.get("Env") or ())
    return Image(
        id=checked_reference(str(data["Id"])),
        name=name,
        # An entry without "=" is no variable to Docker either.
        env={key: value for key, separator, value in pairs if key and separator},
        volumes=usable_volumes(name, tuple(config.get("Volumes") or ())),
        digests=tuple(str(entry).rpartition("@")[2] for entry in data.get("RepoDigests") or ()),
    )


def _hint(name: str, alias: str | None, why: str) -> str:
    target = f"neither is its alias {alias!r}; " if alias else ""
    return (
        f"{why}; {target}make ms-enclave/python:3.11 without a registry (scripts/build-image), pull the image "
        f"beforehand (docker pull {name}), or name a local image for it in the setting images.aliases"
    )
