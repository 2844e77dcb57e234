"""The documented names of a hosted service that this product does not talk to."""

from __future__ import annotations

from typing import Any

from ms_enclave.errors import NotServed


class _Unserved:
    """A name that imports, so that programs which mention it start, and raises `NotServed` when it is used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        raise NotServed(
            f"{type(self).__name__} is not served: ms-enclave runs sandboxes on your own machines. "
            "Use SandboxType.DOCKER with DockerSandboxConfig and LocalSandboxManager."
        )


class VolcengineSandboxConfig(_Unserved):
    """Not served; see the text of the error."""


class VolcengineSandboxManagerConfig(_Unserved):
    """Not served; see the text of the error."""


class VolcengineSandbox(_Unserved):
    """Not served; see the text of the error."""


class VolcengineSandboxManager(_Unserved):
    """Not served; see the text of the error."""
