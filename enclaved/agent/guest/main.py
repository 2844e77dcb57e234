"""Chooses which program of the guest to be.

* ``--container SOCKET SETTINGS`` (PID 1, root) or ``--child SOCKET SETTINGS`` (tests without a PID namespace): the
  guest proper. ``-`` for a socket stands for its own standard input and output.
* ``--template FD SETTINGS``: the template, which only the guest starts.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List

    from .loader import Bundle


def main(arguments: List[str], bundle: Bundle) -> None:
    """Starts one of the programs; each imports only what it needs, since memory counts in every sandbox."""
    if arguments[0] == "--template":
        from .template import template_main

        template_main(int(arguments[1]), json.loads(arguments[2]), bundle)
    elif arguments[0] in ("--container", "--child"):
        from .confinement import check_machine
        from .guest import Guest

        try:
            check_machine(os.uname().machine)
        except RuntimeError as error:  # rather no sandbox than one that runs nothing
            sys.exit("guest: %s" % error)

        Guest(arguments[0], arguments[1], json.loads(arguments[2]), bundle).serve()
    else:
        sys.exit("guest: unknown mode %r" % arguments[0])
