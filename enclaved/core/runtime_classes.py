"""The runtime classes of this daemon: what a sandbox of each is made with, and what it cannot have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from enclaved.errors import EngineRefused, InvalidRequest, PolicyDenied
from enclaved.model import Network, RuntimeClass, SandboxSpec


class RuntimeClasses:
    """Knows the classes that the operator configured. Others may have been configured when a sandbox was made."""

    def __init__(self, classes: Iterable[RuntimeClass] = ()) -> None:
        self._classes = {each.name: each for each in classes}

    @property
    def names(self) -> tuple[str, ...]:
        """What they are called, in the operator's order."""
        return tuple(self._classes)

    def of(self, spec: SandboxSpec) -> RuntimeClass | None:
        """The class of a sandbox; None: the engine's own.

        Raises `InvalidRequest` for one that is not configured (any more), and `PolicyDenied` for a network and for
        host directories, since the filter of packets and the look at directories hold for the engine's own only.
        """
        if not spec.runtime_class:
            return None
        found = self._classes.get(spec.runtime_class)
        if found is None:
            known = ", ".join(self._classes) or "none"
            text = f"the runtime class {spec.runtime_class!r} is not configured on this daemon (configured: {known})"
            raise InvalidRequest.of("spec.runtime_class", text)
        if spec.network is not Network.NONE:
            text = (
                f"a sandbox of the runtime class {found.name!r} has no network: its packets may not pass the kernel's "
                "filter; leave network_enabled and network out, or the runtime class"
            )
            raise PolicyDenied("network", "spec.network_enabled", text)
        if spec.mounts:
            text = (
                f"a sandbox of the runtime class {found.name!r} has no host directories; copy files into it with "
                "put_file, or leave the runtime class out"
            )
            raise PolicyDenied("volumes", "spec.volumes", text)
        return found

    def realised(self, spec: SandboxSpec) -> SandboxSpec:
        """What the engine is asked for: a runtime with a kernel of its own needs threads beside those of programs."""
        found = self._classes.get(spec.runtime_class)
        return spec if found is None else replace(spec, pids_limit=spec.pids_limit + found.pids_extra)

    @contextmanager
    def explaining(self, spec: SandboxSpec) -> Iterator[None]:
        """Says in a sentence that a runtime cannot change limits, as gVisor's of 2022, which prints its manual."""
        try:
            yield
        except EngineRefused as error:
            if (found := self._classes.get(spec.runtime_class)) is None:
                raise
            why = error.engine_message.splitlines()[0][:200]
            text = f"the runtime of the class {found.name!r} may have no way to do that; make another sandbox ({why})"
            raise EngineRefused("change the limits of a sandbox", text) from error

    def engine_runtime(self, spec: SandboxSpec) -> str:
        """What the engine calls the runtime of a sandbox; empty: its default, or a class that is not configured."""
        found = self._classes.get(spec.runtime_class)
        return "" if found is None else found.engine_runtime
