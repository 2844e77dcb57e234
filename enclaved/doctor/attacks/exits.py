"""Unusual ends, which must be reported as they were: whoever can forge a status can forge "all tests passed"."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.attacks.base import Attack, Category, Judge, Program
from enclaved.doctor.attacks.judges import all_of, ends, nothing_left


def _attack(name: str, sentence: str, source: str, judge: Judge, *, in_shell: bool = False) -> Attack:
    return Attack(
        f"exit.{name}",
        Category.EXIT,
        sentence,
        all_of(judge, nothing_left()),
        Program(source, is_shell=in_shell),
        looks_for_processes=True,
    )


ATTACKS: Final = (
    _attack(
        "without-cleanup", "Leaves without any cleanup.", "os._exit(3)\n", ends("EXITED", exit_code=3, attested=True)
    ),
    _attack(
        "native-crash",
        "Crashes in native code.",
        "import ctypes\nctypes.string_at(0)\n",
        ends("SIGNALED", signal=11, attested=True),
    ),
    _attack("like-a-timeout", "Exits with 124, as timeouts do.", "sys.exit(124)\n", ends("EXITED", exit_code=124)),
    _attack("like-a-kill", "Exits with 137, as killed programs do.", "sys.exit(137)\n", ends("EXITED", exit_code=137)),
    _attack(
        "kills-itself",
        "Kills itself, as the kernel does when memory runs out.",
        "os.kill(os.getpid(), 9)\n",
        ends("SIGNALED", signal=9, attested=True),
    ),
    _attack(
        "real-time-signal",
        "Ends by a signal that most programs do not know.",
        "os.kill(os.getpid(), 36)\n",
        ends("SIGNALED", signal=36, attested=True),
    ),
    _attack(
        "closed-output",
        "Closes its standard streams first.",
        "os.close(0)\nos.close(1)\nos.close(2)\nos._exit(7)\n",
        ends("EXITED", exit_code=7, attested=True),
    ),
    _attack(
        "another-program",
        "Becomes another program that ends for it.",
        'os.execv("/bin/sh", ["python3", "-c", "exit 9"])\n',
        ends("EXITED", exit_code=9, attested=True),
    ),
    _attack(
        "shell", "Ends a shell by a signal.", "kill -TERM $$", ends("SIGNALED", signal=15, attested=True), in_shell=True
    ),
    _attack(
        "exit-code-of-a-child",
        "Has a child that ends well and ends badly itself.",
        "if not os.fork():\n    os._exit(0)\nos.wait()\nos._exit(11)\n",
        ends("EXITED", exit_code=11, attested=True),
    ),
    _attack("too-large", "Exits with more than a code can say.", "sys.exit(256 + 5)\n", ends("EXITED", exit_code=5)),
)
