"""The observer child: reads what only the sandbox's own user may know of its processes.

PID 1 is root without ptrace, so the kernel closes /proc/PID/{io,fd,syscall,wchan} of programs to it. This child has
become their user and looks for it. It answers one question at a time and keeps nothing. User code can stop it, kill
it or starve it; the guest counts on no answer and believes none.
"""

from __future__ import annotations

import json
import os
import socket
import struct

from .blocked import Target, awaits_input
from .claims import encode_claim
from .limits import MAX_PAYLOAD_BYTES
from .procfs import pairs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, NoReturn, Tuple


def serve_observer(control: socket.socket, job: Dict[str, Any], settings: Dict[str, Any]) -> NoReturn:
    """Answers questions until the guest closes the socket."""
    while True:  # with all signals held that can be, as a standby child has them
        (size,) = struct.unpack(">I", receive(control, 4))
        control.sendall(encode_claim(answer(json.loads(receive(control, min(size, MAX_PAYLOAD_BYTES))))))


def answer(question: Dict[str, Any]) -> Dict[str, Any]:
    """What the guest asks for: bytes transferred by some processes, and whether they wait for their input."""
    pids, target = question["pids"], question["target"]
    read, written = transferred(pids)
    waiting = target is not None and awaits_input(pids, Target(target[0], target[1]))
    return {"number": question["number"], "read": read, "written": written, "waiting": waiting}


def transferred(pids: List[int]) -> Tuple[int, int]:
    """Bytes that processes have read and written, with those of their children that have ended."""
    read = written = 0
    for pid in pids:
        for name, value in pairs("/proc/%d/io" % pid):
            if name == "rchar":
                read += int(value)
            elif name == "wchar":
                written += int(value)
    return read, written


def receive(control: socket.socket, size: int) -> bytes:
    """Waits for exactly so many bytes. The end of the guest is the end of this process."""
    data = b""
    while len(data) < size:
        try:
            more = control.recv(size - len(data))
        except OSError:
            more = b""
        if not more:
            os._exit(0)
        data += more
    return data
