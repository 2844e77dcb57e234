"""What systemd is told."""

import asyncio
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from enclaved.daemon._systemd import Notifier


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """A service manager that listens."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"{folder}/notify")
        sock.setblocking(False)
        yield sock


def test_nobody_is_told_where_nobody_asked():
    Notifier({}).tell("READY=1")


def test_the_manager_hears(manager: socket.socket):
    Notifier({"NOTIFY_SOCKET": manager.getsockname()}).tell("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_an_abstract_address_works():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + f"enclaved-test-{os.getpid()}")
        Notifier({"NOTIFY_SOCKET": f"@enclaved-test-{os.getpid()}"}).tell("STOPPING=1")
        sock.settimeout(10)
        assert sock.recv(100) == b"STOPPING=1"


def test_a_manager_that_is_gone_is_a_warning(tmp_path: Path, caplog):
    Notifier({"NOTIFY_SOCKET": f"{tmp_path}/none"}).tell("READY=1")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


async def test_the_watchdog_is_fed_for_as_long_as_it_is_asked(manager: socket.socket):
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "2000", "WATCHDOG_PID": str(os.getpid())}
    feeding = asyncio.create_task(Notifier(environ).keep_alive())
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        assert [await loop.sock_recv(manager, 100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    feeding.cancel()


@pytest.mark.parametrize("more", [{}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}])
async def test_a_watchdog_for_nobody_or_another_is_not_fed(manager: socket.socket, more: dict[str, str]):
    await Notifier({"NOTIFY_SOCKET": manager.getsockname(), **more}).keep_alive()
    with pytest.raises(BlockingIOError):
        manager.recv(100)
