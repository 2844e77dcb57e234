"""The daemon: `serve` builds and runs it in an event loop, `run` in a process of its own."""

from enclaved.daemon._ceiling import prepare
from enclaved.daemon._errors import StartError, StateLocked, Unprotected
from enclaved.daemon._policy import policy_of
from enclaved.daemon._process import run
from enclaved.daemon._prune import prune, prune_doctors
from enclaved.daemon._reload import Reloads
from enclaved.daemon._serve import Addresses, serve
from enclaved.daemon._stop import StopRequest

__all__ = [
    "Addresses",
    "Reloads",
    "StartError",
    "StateLocked",
    "StopRequest",
    "Unprotected",
    "policy_of",
    "prepare",
    "prune",
    "prune_doctors",
    "run",
    "serve",
]
