"""Sandboxes in containers without a mount, reached by an attach to PID 1: all is as over the socket."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable

import aiodocker
import pytest
from ms_enclave.v1 import execution_service_pb2 as pb
from ms_enclave.v1 import system_service_pb2 as system_pb

from enclaved.runtime.docker import DockerRuntime, detect_engine_url
from tests.integration.docker_runtime import test_terminals as terminals
from tests.integration.failures import test_killed_daemons as killed_daemons
from tests.integration.failures.ground import Ground
from tests.integration.failures.test_killed_daemons import at, create, killed, stopped
from tests.integration.sdk import test_killed_daemon as sdk
from tests.service.daemons import python
from tests.service.guest.laboratory import Box, ended, follow, laboratory, printed

MIB = 1024 * 1024
SURVIVALS = (
    sdk.test_a_stream_goes_on_with_every_byte_of_output,
    sdk.test_input_arrives_once,
)
BOXED = (
    terminals.test_a_terminal_belongs_to_the_sandboxs_user,
    terminals.test_pid_1_is_root_again_without_more_than_before_and_nobody_may_look_into_it,
    terminals.test_a_shell_has_job_control,
)


def name_of(test: object) -> str:
    return str(getattr(test, "__name__", "")).removeprefix("test_")


@pytest.fixture
async def box() -> AsyncIterator[Box]:
    runtime = DockerRuntime(detect_engine_url(), image_aliases={"python:3.11-slim": "ms-enclave/python:3.11"})
    async with laboratory(runtime, channel="attach") as lab:
        yield await lab.box()


@pytest.mark.parametrize("test", SURVIVALS, ids=name_of)
async def test_what_survives_a_killed_daemon_survives_it_here(
    ground: Ground, test: Callable[[Ground], Awaitable[None]]
) -> None:
    await test(ground)


@pytest.mark.parametrize("test", BOXED, ids=name_of)
async def test_terminals_are_what_they_are_elsewhere(box: Box, test: Callable[[Box], Awaitable[None]]) -> None:
    await test(box)


async def test_a_container_has_no_mount_of_ours_and_its_input_is_open(ground: Ground) -> None:
    daemon = await ground.daemon()
    async with at(daemon) as stubs, aiodocker.Docker(detect_engine_url()) as engine:
        await create(stubs)
        (container_id,) = ground.containers()
        found = await engine.containers.container(container_id).show()
        assert (found["Mounts"], found["HostConfig"].get("Mounts")) == ([], None)
        assert (found["Config"]["OpenStdin"], found["Config"]["StdinOnce"]) == (True, False)
        assert (await stubs.system.GetInfo(system_pb.GetInfoRequest())).engine.channel == "attach"
    await stopped(daemon, ground)


async def test_64_mib_of_output_come_whole_at_the_pace_of_the_reader(ground: Ground) -> None:
    code = f"import os\nfor number in range({64 * 16}):\n    os.write(1, number.to_bytes(4, 'big') * 16384)"
    daemon = await ground.daemon()
    async with at(daemon) as stubs:
        await create(stubs)
        call = stubs.executions.Execute()
        await call.write(pb.ExecuteRequest(start=python(code)))
        digest, size = hashlib.sha256(), 0
        while not (event := (await call.read()).event).HasField("finished"):
            if event.HasField("output"):
                assert event.output.offset == size
                digest.update(event.output.data)
                size += len(event.output.data)
        assert event.finished.verdict == pb.VERDICT_EXITED
    expected = hashlib.sha256(b"".join(number.to_bytes(4, "big") * 16384 for number in range(64 * 16)))
    assert (size, digest.digest()) == (64 * MIB, expected.digest())
    await stopped(daemon, ground)


async def test_what_ended_while_there_was_no_daemon_is_told_by_the_next(ground: Ground) -> None:
    waits = "import os, sys, time\nprint('begun', flush=True)\nwhile not os.path.exists('go'): time.sleep(0.01)\n"
    goes = "import os, time\nprint('begun', flush=True)\ntime.sleep(0.5)\nopen('go', 'w').close()\n"
    first = await ground.daemon()
    async with at(first) as stubs:
        await create(stubs)
        head = await killed_daemons.start(stubs, python(f"{waits}os._exit(137)", execution_id="run"), 6)
        spec = python(goes, execution_id="other")
        spec.parameters_json = json.dumps({"code": goes, "isolated": True})
        await killed_daemons.start(stubs, spec, 6)
        await killed(first)
    second = await ground.daemon()
    async with at(second) as stubs:
        tail, finished = await killed_daemons.follow(stubs, "run", len(head))
        assert (tail, finished.verdict, finished.exit_code) == (b"", pb.VERDICT_EXITED, 137)
    await stopped(second, ground)


async def test_contexts_files_and_signals_work_and_pid_1_cannot_be_reached(box: Box) -> None:
    assert ended(await box.python("answer = 6 * 7")).exit_code == 0
    assert printed(await box.python("print(answer)")) == "42\n"
    await box.run("file_operation", {"operation": "write", "file_path": "a/b", "content": "text\n"})
    assert printed(await box.shell("cat a/b; id -u")).startswith("text\n19")
    execution = await box.open_shell("trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done")

    async def interrupt(story: object) -> None:
        execution.signal(signal.SIGINT, leader_only=True)

    story = await follow(execution, on_output=interrupt)
    assert story.finished is not None
    assert story.finished.exit_code == 5
    hostile = (
        "for fd in 0 1 2 3 4 5 6 7; do (: <>/proc/1/fd/$fd) 2>/dev/null && echo reached $fd; done; "
        "ls /proc/1/fd 2>/dev/null; cat /proc/1/environ /proc/1/mem 2>/dev/null; kill -STOP 1 2>/dev/null || echo no"
    )
    assert printed(await box.shell(hostile)) == "no\n"


async def test_a_sandbox_that_is_paused_by_hand_goes_on_and_one_that_is_killed_is_lost(ground: Ground) -> None:
    daemon = await ground.daemon()
    async with at(daemon) as stubs, aiodocker.Docker(detect_engine_url()) as engine:
        await create(stubs)
        (container_id,) = ground.containers()
        container = engine.containers.container(container_id)
        await container.pause()
        await daemon.says('"sandbox paused"')
        await container.unpause()
        await daemon.says('"sandbox resumed"')
        answer = await stubs.executions.Run(pb.RunRequest(spec=python("print('on')")))
        assert answer.stdout == b"on\n"
        await container.kill()
        await daemon.says('"sandbox lost"')
    await stopped(daemon, ground)
