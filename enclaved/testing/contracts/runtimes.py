"""What every runtime promises."""
# ruff: noqa: S101 - assertions are what a contract consists of

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from enclaved.agent.handle import RunOptions
from enclaved.agent.install import install_guest
from enclaved.agent.jobs import encode_job, environment
from enclaved.errors import EngineRefused, ImageNotFound
from enclaved.model import CommandJob, Output, PythonJob
from enclaved.runtime.base import STDERR_TAIL_BYTES, ContainerChange, ContainerEvent, Counters, Runtime
from enclaved.testing.contracts.bench import MIB, PATIENCE_S, Bench


class RuntimeContract:
    """What `Runtime` promises. A subclass adds a fixture ``runtime``, which closes it, and the name of an image."""

    image_name: ClassVar[str] = "python:3.11-slim"
    """An image that it has, with Python."""
    attached: ClassVar[bool] = False
    """Whether its guests are attached to, instead of connecting to a mounted socket."""

    @pytest.fixture
    async def bench(self, runtime: Runtime) -> AsyncIterator[Bench]:
        """See `Bench`."""
        # Short, since sockets have room for 107 bytes, and passable for the users of sandboxes.
        directory = Path(tempfile.mkdtemp(prefix="rt"))
        directory.chmod(0o711)
        bench = Bench(
            runtime,
            await runtime.resolve_image(self.image_name, may_pull=False),
            directory,
            [],
            secrets.token_hex(8),
            self.attached,
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                yield bench
        finally:
            await bench.close()
            shutil.rmtree(directory, ignore_errors=True)

    async def test_it_says_what_it_is(self, runtime: Runtime) -> None:
        info = await runtime.info()
        assert info.available
        assert info.name
        assert info.version

    async def test_an_image_is_found_with_its_digest(self, runtime: Runtime) -> None:
        image = await runtime.resolve_image(self.image_name, may_pull=False)
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", image.id)
        assert image.name

    async def test_an_image_that_is_not_there_is_not_found(self, runtime: Runtime) -> None:
        with pytest.raises(ImageNotFound) as caught:
            await runtime.resolve_image("enclaved-test/not-there:1", may_pull=False)
        assert "enclaved-test/not-there:1" in str(caught.value)

    async def test_a_container_is_made_without_being_started(self, bench: Bench) -> None:
        site = await bench.site()
        container_id = await bench.runtime.create(site.plan)
        status = await bench.runtime.status(container_id)
        assert status is not None
        assert not status.running
        assert not site.link.connected

    async def test_the_guest_comes_to_the_socket_and_runs_programs_as_their_user(self, bench: Bench) -> None:
        site = await bench.site()
        async with bench.running(site) as container_id:
            status = await bench.runtime.status(container_id)
            assert status is not None
            assert (status.running, status.paused, status.exit_code) == (True, False, None)
            found = await site.run(_sh("id -u; id -g; echo text > file; stat -c %u . file; stat -c %a ."))
            uid = site.plan.settings.uid
            assert found.split() == [str(uid), str(uid if os.getuid() == 0 else os.getgid()), str(uid), str(uid), "700"]
            assert await site.run(PythonJob("print(open('file').read())")) == "text\n\n"

    async def test_programs_cannot_talk_to_the_daemon(self, bench: Bench) -> None:
        site = await bench.site()
        async with bench.running(site):
            for path in ("/proc/1/fd/0", "/proc/1/fd/1", "/proc/1/mem"):
                if os.getuid() == 0:  # a process namespace of its own
                    refused = f"try: open({path!r}, 'rb+')\nexcept OSError as error: print(type(error).__name__)\n"
                    assert await site.run(PythonJob(refused)) == "PermissionError\n"
            if site.link.attaches:
                assert "agent.sock" not in await site.run(_sh("cat /proc/1/cmdline"))
                return
            # Of all sockets that the program can name, the guest's is the only one with this name.
            code = (
                "import glob, socket, sys\n"
                "paths = open('/proc/1/cmdline').read().split(chr(0))\n"
                "path = next(path for path in paths if path.endswith('agent.sock'))\n"
                "try: socket.socket(socket.AF_UNIX).connect(path)\n"
                "except OSError as error: print(type(error).__name__)\n"
            )
            if site.plan.settings.uid != os.getuid():
                assert await site.run(PythonJob(code)) == "PermissionError\n"

    async def test_containers_share_no_files_and_no_processes(self, bench: Bench) -> None:
        one, other = await bench.site(), await bench.site()
        async with bench.running(one), bench.running(other):
            await one.run(_sh("echo > mine"))
            assert await other.run(_sh("ls -A")) == ""
            assert await one.run(_sh("ls -A")) == "mine\n"
            if os.getuid() == 0:  # a process namespace of its own: the guest is PID 1 of each
                assert [await each.run(_sh("echo $PPID")) for each in (one, other)] == ["1\n", "1\n"]

    async def test_who_attaches_again_goes_on_and_no_frame_is_lost(self, bench: Bench) -> None:
        site = await bench.site()
        async with bench.running(site):
            env = environment(site.plan.image.env, {}, site.plan.spec.working_dir)
            job = encode_job(_sh("seq 1 200000"), env)
            handle, reader = site.link.start(secrets.token_hex(4), job, RunOptions(timeout_s=PATIENCE_S))
            output = bytearray()
            while (item := await reader.next()) is not None:
                if isinstance(item, Output):
                    assert item.offset == len(output)
                    output += item.data
                    handle.acknowledge({1: len(output)})
                    if len(output) % 5 == 0:
                        assert await site.link.renewed(PATIENCE_S) is site.link.attaches
            assert bytes(output) == b"".join(b"%d\n" % number for number in range(1, 200_001))
            assert (await handle.finished)["exit_code"] == 0

    async def test_a_guest_that_ends_leaves_its_exit_code_and_its_last_words(self, bench: Bench) -> None:
        site = await bench.site("import sys; sys.stderr.write('\\u2603 last words \\udcff'); sys.exit(7)")
        container_id = await bench.runtime.create(site.plan)
        async with bench.runtime.starting(container_id) as stderr:
            status = await bench.ended(container_id)
            assert (status.running, status.exit_code) == (False, 7)
            await _said(stderr.text, "last words")

    async def test_of_many_words_only_the_last_are_kept(self, bench: Bench) -> None:
        words = 4 * STDERR_TAIL_BYTES
        site = await bench.site(f"import sys; sys.stderr.write('x' * {words} + 'the end'); sys.exit(1)")
        container_id = await bench.runtime.create(site.plan)
        async with bench.runtime.starting(container_id) as stderr:
            await bench.ended(container_id)
            await _said(stderr.text, "the end")
            assert len(stderr.text()) <= STDERR_TAIL_BYTES

    async def test_a_guest_may_talk_without_end_while_it_starts(self, bench: Bench) -> None:
        """Nobody reads its standard error afterwards; it must not stop for that."""
        source = Path(install_guest(bench.directory / "guest")).read_text()
        site = await bench.site(source.replace("def main(", "sys.stderr.write('x' * 300000)\n\n\ndef main(", 1))
        async with bench.running(site):
            assert await site.run(_sh("echo on")) == "on\n"

    async def test_a_container_goes_at_once_with_all_that_runs_in_it(self, bench: Bench) -> None:
        stubborn = (
            "import signal, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: time.sleep(9)"
        )
        for guest in (None, stubborn):
            site = await bench.site(guest)
            container_id = await bench.create(site)
            async with bench.runtime.starting(container_id):
                if guest is None:
                    await site.reach()
                    site.link.start("x", encode_job(_sh("trap '' TERM; sleep 600"), {}), RunOptions(600))
            await bench.runtime.remove(container_id)
            assert await bench.runtime.status(container_id) is None
            await site.link.wait_away()
        assert await bench.ours() == {}

    async def test_removing_what_is_gone_is_fine(self, bench: Bench) -> None:
        container_id = await bench.runtime.create((await bench.site()).plan)
        await bench.runtime.remove(container_id)
        await bench.runtime.remove(container_id)
        never = secrets.token_hex(32)
        await bench.runtime.remove(never)
        assert await bench.runtime.status(never) is None

    async def test_a_paused_container_does_nothing_and_then_goes_on(self, bench: Bench) -> None:
        site = await bench.site()
        async with bench.running(site) as container_id:
            for _ in range(2):  # a second time changes nothing
                await bench.runtime.pause(container_id)
                status = await bench.runtime.status(container_id)
                assert status is not None
                assert (status.running, status.paused) == (True, True)
            answer = asyncio.create_task(site.link.ping(PATIENCE_S))
            await asyncio.wait([answer], timeout=0.3)
            assert not answer.done()
            for _ in range(2):
                await bench.runtime.unpause(container_id)
            await answer
            status = await bench.runtime.status(container_id)
            assert status is not None
            assert not status.paused
            assert await site.run(_sh("echo on")) == "on\n"

    async def test_a_paused_container_can_be_removed_and_what_is_gone_cannot_be_paused(self, bench: Bench) -> None:
        site = await bench.site()
        async with bench.running(site) as container_id:
            await bench.runtime.pause(container_id)
            await bench.runtime.remove(container_id)
            assert await bench.runtime.status(container_id) is None
            for change in (bench.runtime.pause, bench.runtime.unpause):
                with pytest.raises(EngineRefused):
                    await change(container_id)

    async def test_limits_can_change_while_a_container_runs(self, bench: Bench) -> None:
        site = await bench.site()
        async with bench.running(site) as container_id:
            spec = site.plan.spec
            more = replace(spec, memory_limit_bytes=spec.memory_limit_bytes + 64 * MIB, cpu_limit=0.5, pids_limit=99)
            await bench.runtime.update(container_id, more)
            await bench.runtime.update(container_id, spec)
            assert await site.run(_sh("echo on")) == "on\n"
        with pytest.raises(EngineRefused):
            await bench.runtime.update(container_id, spec)

    async def test_limits_that_differ_are_noticed(self, bench: Bench) -> None:
        site = await bench.site()
        async with bench.running(site) as container_id:
            spec = site.plan.spec
            assert await bench.runtime.has_limits(container_id, spec)
            await bench.runtime.update(container_id, replace(spec, pids_limit=99))
            assert not await bench.runtime.has_limits(container_id, spec)
        await bench.runtime.remove(container_id)
        assert await bench.runtime.has_limits(container_id, spec), "one that is gone has no others"

    async def test_what_happens_to_a_container_is_told(self, bench: Bench) -> None:
        site = await bench.site()
        async with bench.runtime.events() as events, asyncio.timeout(PATIENCE_S):
            async with bench.running(site) as container_id:

                async def told(*wanted: ContainerChange) -> ContainerEvent:
                    async for event in events:
                        if event.container_id == container_id and event.change in wanted:
                            return event
                    raise AssertionError(f"the events ended without {wanted}")

                await bench.runtime.pause(container_id)
                paused = await told(ContainerChange.PAUSED)
                await bench.runtime.unpause(container_id)
                await told(ContainerChange.RESUMED)
                await bench.runtime.update(container_id, replace(site.plan.spec, pids_limit=99))
                updated = await told(ContainerChange.UPDATED)
                assert updated.at_ns > paused.at_ns > 0
            await bench.runtime.remove(container_id)
            await told(ContainerChange.REMOVED)

    async def test_what_is_gone_cannot_be_started(self, bench: Bench) -> None:
        container_id = await bench.runtime.create((await bench.site()).plan)
        await bench.runtime.remove(container_id)
        with pytest.raises(EngineRefused):
            async with bench.runtime.starting(container_id):
                pass

    async def test_containers_are_listed_with_their_labels(self, bench: Bench) -> None:
        one, other = await bench.site(), await bench.site()
        made = await bench.runtime.create(one.plan)
        async with bench.running(other) as running:
            ours = await bench.ours()
            assert set(ours) == {made, running}
            for container_id, site in ((made, one), (running, other)):
                assert ours[container_id].items() >= site.plan.labels.items()
            states = {record.id: record.running for record in await bench.runtime.list_records()}
            assert (states[made], states[running]) == (False, True)

    async def test_a_create_that_is_cancelled_leaves_nothing(self, bench: Bench) -> None:
        for steps in range(4):
            creating = asyncio.create_task(bench.runtime.create((await bench.site()).plan))
            for _ in range(steps):
                await asyncio.sleep(0)
            creating.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await bench.runtime.remove(await creating)  # it was quicker
            assert await bench.ours() == {}

    async def test_a_start_that_is_cancelled_can_be_undone(self, bench: Bench) -> None:
        for steps in range(4):
            container_id = await bench.runtime.create((await bench.site()).plan)
            starting = asyncio.create_task(_start(bench.runtime, container_id))
            for _ in range(steps):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait([starting])
            await bench.runtime.remove(container_id)
            assert await bench.runtime.status(container_id) is None

    async def test_counters_are_numbers_or_cannot_be_seen(self, bench: Bench) -> None:
        async with bench.running(await bench.site()) as container_id:
            counters = bench.runtime.counters(container_id)
            if counters is not None:
                assert counters == Counters(oom_kills=0, pids_limit_hits=0)
        assert bench.runtime.counters(container_id) is None
        assert bench.runtime.counters(secrets.token_hex(32)) is None

    async def test_what_a_sandbox_uses_is_told_or_cannot_be_seen(self, bench: Bench) -> None:
        async with bench.running(await bench.site()) as container_id:
            usage = bench.runtime.usage(container_id)
            if usage is not None:
                assert usage.cpu_user_s + usage.cpu_system_s > 0
                assert 0 < usage.memory_bytes <= usage.memory_peak_bytes
                assert usage.pids >= 1
        assert bench.runtime.usage(container_id) is None
        assert bench.runtime.usage(secrets.token_hex(32)) is None


def _sh(command: str) -> CommandJob:
    return CommandJob(argv=("/bin/sh", "-c", command))


async def _start(runtime: Runtime, container_id: str) -> None:
    async with runtime.starting(container_id):
        await asyncio.Event().wait()


async def _said(text: Callable[[], str], words: str) -> None:
    """Waits for words on standard error, which may come a moment after the end of who said them."""
    while True:
        if words in text():
            return
        await asyncio.sleep(0.01)
