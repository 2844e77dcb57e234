"""What may be left of sandboxes that are gone."""

from __future__ import annotations

import enum


class LeftoverKind(enum.StrEnum):
    """A sort of thing that a daemon makes, and that may outlive its owner where something goes wrong."""

    CONTAINER = "container"
    """On the engine, with labels that prove whose it is."""
    NETWORK = "network"
    """On the engine, with labels that prove whose it is, while no sandbox needs it."""
    DIRECTORY = "directory"
    """Of a sandbox, in the state directory, with its socket."""
    FILE = "file"
    """Half written, or of an earlier version, in the state directory."""
    SANDBOX_ROW = "sandbox_row"
    EXECUTION_ROW = "execution_row"
    UID = "uid"
    """A user id that is taken for a sandbox that is not there."""
