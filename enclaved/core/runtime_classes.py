"""The runtime classes of this daemon: what a sandbox of each is made with, and what it cannot have."""

from __future__ import annotations

from collections.abc import Iterable

from enclaved.errors import InvalidRequest, PolicyDenied
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
