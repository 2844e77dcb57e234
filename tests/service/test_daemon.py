"""A whole daemon: how it starts, where it listens, and how it ends."""

import asyncio
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb

from enclaved import daemon as daemon_module
from enclaved.core.ownership import Ownership
from enclaved.daemon import StartError, StateLocked
from enclaved.runtime.base import ContainerRecord
from enclaved.testing.subprocess_runtime import SubprocessRuntime
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory
from tests.service.edge import reason


@pytest.fixture
async def folder() -> AsyncIterator[Path]:
    async with short_directory() as folder:
        yield folder


@pytest.fixture
async def running(folder: Path) -> AsyncIterator[Running]:
    async with daemon(settings_in(folder)) as running:
        yield running


# -- serving -----------------------------------------------------------------------------------------------------


async def test_code_runs_in_a_sandbox_and_keeps_its_variables(running: Running):
    await running.create()
    await running.execution_stub.Run(execution_pb.RunRequest(spec=python("x = 20")))
    response = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(x + 1)")))
    assert (response.stdout, response.finished.exit_code) == (b"21\n", 0)


async def test_execute_streams_output_and_takes_input(running: Running):
    await running.create()
    call = running.execution_stub.Execute()
    spec = python("print(input() + '!')", stdin=True)
    await call.write(execution_pb.ExecuteRequest(start=spec))
    await call.write(execution_pb.ExecuteRequest(stdin=execution_pb.Stdin(data=b"hello\n")))
    events = []
    while (message := await call.read()) is not aio.EOF:
        events.append(message.event)
    assert [event.WhichOneof("event") for event in events] == ["started", "output", "finished"]
    assert events[1].output.data == b"hello!\n"


async def test_the_daemon_says_what_it_is(running: Running):
    response = await running.system_stub.GetInfo(system_pb.GetInfoRequest())
    assert (response.engine.name, response.engine.available, response.embedded) == ("subprocess", True, False)


async def test_what_happens_is_counted(running: Running):
    await running.create()
    await running.execution_stub.Run(execution_pb.RunRequest(spec=python("1 / 0")))
    status, text = await running.get("/metrics")
    assert status == 200
    for line in (
        'enclaved_sandboxes{state="running"} 1.0',
        'enclaved_sandboxes_created_total{outcome="ok"} 1.0',
        'enclaved_executions_total{tool="python_executor",verdict="EXCEPTION"} 1.0',
        "enclaved_executions_active 0.0",
        'enclaved_execution_phase_seconds_count{phase="running"} 1.0',
        "enclaved_engine_up 1.0",
    ):
        assert line in text.splitlines()
    run = 'grpc_code="OK",grpc_method="Run",grpc_service="ms_enclave.v1.ExecutionService",grpc_type="unary"'
    assert f"grpc_server_handled_total{{{run}}} 1.0" in text.splitlines()
    assert (await running.get("/healthz")) == (200, "ok\n")


async def test_logs_never_hold_code_input_or_environment(running: Running, caplog):
    caplog.set_level(logging.DEBUG, logger="enclaved")
    spec = sandbox_pb.SandboxSpec(env_vars={"TOKEN": "s3cret-env"})
    await running.sandbox_stub.CreateSandbox(sandbox_pb.CreateSandboxRequest(sandbox_id="box", spec=spec))
    await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print('s3cret-code')")))
    await running.execution_stub.Run(execution_pb.RunRequest(spec=python("raise ValueError('s3cret-error')")))
    with pytest.raises(aio.AioRpcError):
        await running.execution_stub.Run(execution_pb.RunRequest(spec=python("x", execution_id="s3cret id")))
    lines = [json.dumps(vars(record), default=str) for record in caplog.records if record.name.startswith("enclaved")]
    assert any("sandbox created" in line for line in lines)
    assert not [line for line in lines if "s3cret" in line]


# -- listening ---------------------------------------------------------------------------------------------------


async def test_the_socket_has_the_mode_that_was_asked_for(folder: Path):
    async with daemon(settings_in(folder, listen__unix_mode="0606")) as running:
        assert stat.S_IMODE(Path(running.addresses.unix).stat().st_mode) == 0o606


async def test_without_the_group_only_the_mode_decides_and_the_log_says_so(folder: Path, caplog):
    async with daemon(settings_in(folder, listen__unix_group="no-such-group")) as running:
        assert stat.S_IMODE(Path(running.addresses.unix).stat().st_mode) == 0o660
    assert "the group for the socket does not exist" in [record.message for record in caplog.records]


async def test_a_group_gets_the_socket(folder: Path):
    group = "daemon" if os.geteuid() == 0 else ""
    async with daemon(settings_in(folder, listen__unix_group=group)) as running:
        owner = Path(running.addresses.unix).stat().st_gid
        assert owner == (1 if group else os.getegid())


async def test_the_socket_goes_with_the_daemon_and_the_state_stays(folder: Path):
    async with daemon(settings_in(folder)) as running:
        assert Path(running.addresses.unix).is_socket()
    assert sorted(path.name for path in folder.iterdir()) == ["state"]
    async with daemon(settings_in(folder)) as running:
        await running.create()


async def test_a_socket_of_a_dead_daemon_is_replaced(folder: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{folder}/e.sock")
    async with daemon(settings_in(folder)) as running:
        await running.system_stub.GetInfo(system_pb.GetInfoRequest())


async def test_a_socket_on_which_somebody_answers_is_left_alone(folder: Path):
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(f"{folder}/e.sock")
        alive.listen()
        with pytest.raises(StartError, match="another program does so already"):
            async with daemon(settings_in(folder)):
                pass
    assert (folder / "e.sock").is_socket()


async def test_a_file_that_is_no_socket_is_left_alone(folder: Path):
    (folder / "e.sock").write_text("precious")
    with pytest.raises(StartError, match="no socket is there"):
        async with daemon(settings_in(folder)):
            pass
    assert (folder / "e.sock").read_text() == "precious"


async def test_tcp_is_served_on_loopback_where_it_is_asked_for(folder: Path):
    async with daemon(settings_in(folder, listen__unix="", listen__tcp="127.0.0.1:0")) as running:
        assert running.addresses.unix == ""
        async with aio.insecure_channel(running.addresses.tcp) as channel:
            call = channel.unary_unary("/ms_enclave.v1.SystemService/GetInfo")
            assert system_pb.GetInfoResponse.FromString(await call(b"")).engine.name == "subprocess"


async def test_a_tcp_port_in_use_is_refused_with_a_hint(folder: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(StartError, match="is another program using the port"):
            async with daemon(settings_in(folder, listen__tcp=address)):
                pass
        with pytest.raises(StartError, match=r"cannot serve metrics on .*: Address already in use"):
            async with daemon(settings_in(folder, listen__metrics=address)):
                pass
    assert sorted(path.name for path in folder.iterdir()) == ["state"]


async def test_a_second_daemon_is_refused_before_it_touches_anything(folder: Path):
    async with daemon(settings_in(folder)) as running:
        await running.create()
        with pytest.raises(StateLocked, match=rf"process {os.getpid()}\) uses the state directory"):
            async with daemon(settings_in(folder)):
                pass
        response = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))
        assert response.stdout == b"1\n"


async def test_a_state_directory_that_cannot_be_made_is_refused_with_a_hint(folder: Path):
    (folder / "file").touch()
    with pytest.raises(StartError, match=r"Not a directory; choose one .*--state-dir"):
        async with daemon(settings_in(folder, state__dir=f"{folder}/file/state")):
            pass


# -- without an engine -------------------------------------------------------------------------------------------


async def test_without_an_engine_the_daemon_is_up_and_says_so(folder: Path, caplog):
    settings = settings_in(folder, engine__url=f"unix://{folder}/no-engine.sock")
    async with daemon(settings, runtime=None) as running:
        info = await running.system_stub.GetInfo(system_pb.GetInfoRequest())
        assert not info.engine.available
        for _ in range(2):
            with pytest.raises(aio.AioRpcError) as caught:
                await running.create()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert reason(caught.value) == "ENGINE_UNAVAILABLE"
        status, text = await running.get("/metrics")
        assert status == 200
        assert "enclaved_engine_up 0.0" in text
    assert any("engine does not answer" in record.message for record in caplog.records)


async def test_without_an_engine_the_daemon_ends_and_does_not_wait_for_its_next_look(folder: Path, monkeypatch):
    monkeypatch.setattr("enclaved.core.endings.RETRY_S", 3600)
    monkeypatch.setattr("enclaved.daemon._serve.REMOVE_SANDBOXES_S", 3600)
    async with daemon(settings_in(folder, engine__url=f"unix://{folder}/none"), runtime=None) as running:
        await running.ended()
    assert running.task.done()


# -- the end -----------------------------------------------------------------------------------------------------


class LateRuntime(SubprocessRuntime):
    """Has a container that an earlier daemon asked for, from the second look on."""

    def __init__(self, labels: dict[str, str]) -> None:
        super().__init__()
        self._late = ContainerRecord("f" * 64, labels, running=False)
        self._looks = 0
        self.removed = asyncio.Event()

    async def list_records(self) -> list[ContainerRecord]:
        self._looks += 1
        return [] if self._looks == 1 else [self._late]

    async def remove(self, container_id: str) -> None:
        if container_id == self._late.id:
            self.removed.set()


async def test_a_container_that_comes_after_its_daemon_was_killed_is_removed_as_well(folder: Path, monkeypatch):
    monkeypatch.setattr("enclaved.core.leftovers.LATE_S", 0)
    settings = settings_in(folder)
    Path(settings.state.dir).mkdir()
    runtime = LateRuntime(Ownership.of(Path(settings.state.dir)).labels("box", 1))
    async with daemon(settings, runtime=runtime), asyncio.timeout(PATIENCE_S):
        await runtime.removed.wait()


class CountedRuntime(SubprocessRuntime):
    """Remembers whether it was closed with nothing left."""

    left: int | None = None

    async def close(self) -> None:
        self.left = len(await self.list_records())
        await super().close()


async def test_the_end_removes_every_sandbox(folder: Path):
    runtime = CountedRuntime()
    async with daemon(settings_in(folder), runtime=runtime) as running:
        for name in ("a", "b", "c"):
            await running.create(name)
        assert len(await runtime.list_records()) == 3
    assert runtime.left == 0
    assert list((folder / "state" / "s").iterdir()) == []


async def test_a_daemon_whose_task_is_cancelled_removes_its_sandboxes_too(folder: Path):
    runtime = CountedRuntime()
    async with daemon(settings_in(folder), runtime=runtime) as running:
        await running.create()
        running.task.cancel()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.wait((running.task,))
        assert running.task.cancelled()
    assert runtime.left == 0


async def refused(running: Running) -> str:
    """Waits until a new call is refused, and says why."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await running.system_stub.GetInfo(system_pb.GetInfoRequest())
            except aio.AioRpcError as error:
                return reason(error)


async def test_a_stop_refuses_new_calls_and_lets_running_ones_finish(running: Running):
    await running.create()
    call = running.execution_stub.Execute()
    await call.write(execution_pb.ExecuteRequest(start=python("print(input())", stdin=True)))
    assert (await call.read()).event.WhichOneof("event") == "started"
    running.stop.ask("the test")
    assert await refused(running) == "SHUTTING_DOWN"
    assert await running.get("/healthz") == (503, "stopping\n")
    await call.write(execution_pb.ExecuteRequest(stdin=execution_pb.Stdin(data=b"to the end\n")))
    assert (await call.read()).event.output.data == b"to the end\n"
    assert (await call.read()).event.finished.verdict == execution_pb.VERDICT_EXITED
    assert await call.read() is aio.EOF
    async with asyncio.timeout(PATIENCE_S):
        await running.task


@pytest.mark.parametrize("hurries", [False, True], ids=["grace", "second signal"])
async def test_a_call_that_outlasts_the_grace_is_told_that_its_sandbox_went(folder: Path, hurries: bool):
    grace = "3600" if hurries else "0"
    async with daemon(settings_in(folder, daemon__drain_grace_s=grace)) as running:
        await running.create()
        call = running.execution_stub.Execute()
        await call.write(execution_pb.ExecuteRequest(start=python("input()", stdin=True)))
        assert (await call.read()).event.WhichOneof("event") == "started"
        running.stop.ask("the test")
        if hurries:
            running.stop.ask("the test, again")
        assert (await call.read()).event.finished.verdict == execution_pb.VERDICT_SANDBOX_LOST
        async with asyncio.timeout(PATIENCE_S):
            await running.task


async def test_a_daemon_without_tools_says_what_to_do(folder: Path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: ())
    with pytest.raises(StartError, match="install ms-enclave again"):
        async with daemon(settings_in(folder), tools=None):
            pass


def test_the_daemon_shows_what_others_need():
    names = {"Addresses", "Reloads", "StopRequest", "policy_of", "prepare", "prune", "prune_doctors", "run", "serve"}
    problems = {"StartError", "StateLocked", "Unprotected"}
    assert set(daemon_module.__all__) == names | problems
