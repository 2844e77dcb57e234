"""What holds sandboxes back until their isolation was seen to work."""

from __future__ import annotations

from typing import Protocol


class Gate(Protocol):
    """Whoever knows whether sandboxes are isolated here."""

    def expect(self, image: str) -> None:
        """A sandbox of this image is being made."""
        ...

    def doubt(self) -> None:
        """The engine may be another one now."""
        ...

    async def wait_passed(self, image: str) -> None:
        """Waits until protections were seen to work. Raises `EngineRefused` if they do not."""
        ...
