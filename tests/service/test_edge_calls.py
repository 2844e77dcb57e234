"""Every call over a real gRPC server: what the core is asked, and what the caller gets."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import file_service_pb2 as file_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import system_service_pb2 as system_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb

from enclaved import errors, log, model
from tests.service.core_fakes import BOX
from tests.service.edge import Edge, details, fields, reason, serving

SERVICES = (
    "SandboxService",
    "ExecutionService",
    "ContextService",
    "ToolService",
    "FileService",
    "PoolService",
    "ImageService",
    "SystemService",
)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with serving() as edge:
        yield edge


def spec(**changes: object) -> execution_pb.ExecutionSpec:
    values = {"sandbox_id": "box", "tool": "python_executor", "parameters_json": "{}", **changes}
    return execution_pb.ExecutionSpec(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("service", SERVICES)
async def test_every_method_of_the_contract_is_served(edge: Edge, service: str):
    descriptor = descriptor_pool.Default().FindServiceByName(f"ms_enclave.v1.{service}")
    for method in descriptor.methods:
        call = edge.channel.stream_stream(f"/{descriptor.full_name}/{method.name}")()
        await call.write(b"")
        await call.done_writing()
        with contextlib.suppress(aio.AioRpcError):
            assert [message async for message in call]
        assert await call.code() is not grpc.StatusCode.UNIMPLEMENTED, method.name


async def test_a_sandbox_is_created_with_id_and_labels(edge: Edge):
    response = await edge.sandbox_stub.CreateSandbox(
        sandbox_pb.CreateSandboxRequest(
            sandbox_id="box", spec=sandbox_pb.SandboxSpec(pids_limit=64), labels={"team": "a"}, request_id="4711"
        )
    )
    assert edge.sandboxes.asked == [("create", model.SandboxRequest(pids_limit=64), "box", {"team": "a"}, "4711")]
    assert response.sandbox.id == "box"
    assert response.sandbox.state == sandbox_pb.Sandbox.STATE_RUNNING
    assert response.sandbox.create_time.ToJsonString() == "2026-01-02T03:04:05.678Z"


async def test_sandboxes_are_listed_by_labels_and_states_in_pages(edge: Edge):
    response = await edge.sandbox_stub.ListSandboxes(
        sandbox_pb.ListSandboxesRequest(
            labels={"a": "b"}, states=[sandbox_pb.Sandbox.STATE_STOPPED], page_size=7, page_token="t", tenant="default"
        )
    )
    wanted = model.SandboxFilter({"a": "b"}, frozenset({model.SandboxState.STOPPED}), "default")
    assert edge.sandboxes.asked == [("list", wanted, 7, "t")]
    assert ([sandbox.id for sandbox in response.sandboxes], response.next_page_token) == (["box"], "next")
    assert response.revision == 17


async def test_watchers_are_told_what_concerns_them_and_whether_it_still_does(edge: Edge):
    request = sandbox_pb.WatchSandboxesRequest(revision=17, states=[sandbox_pb.Sandbox.STATE_STOPPED], heartbeat_s=5)
    messages = [message async for message in edge.sandbox_stub.WatchSandboxes(request)]
    assert edge.sandboxes.asked == [
        ("watch", 17, model.SandboxFilter(states=frozenset({model.SandboxState.STOPPED})), 5)
    ]
    kinds = sandbox_pb.WatchSandboxesResponse
    assert [(message.kind, message.revision) for message in messages] == [
        (kinds.KIND_BOOKMARK, 17),
        (kinds.KIND_CREATED, 18),
        (kinds.KIND_CHANGED, 19),
        (kinds.KIND_DELETED, 20),
    ]
    assert [message.matches for message in messages] == [False, False, True, False]
    assert messages[2].sandbox.id == "box"
    assert messages[2].cause == sandbox_pb.StateChange.CAUSE_IDLE
    assert messages[2].time.ToJsonString() == "2026-01-02T03:04:05.678Z"


async def test_the_other_calls_of_a_sandbox_name_it(edge: Edge):
    found = await edge.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="box"))
    assert [(one.state, one.reason, one.cause) for one in found.history] == [
        (sandbox_pb.Sandbox.STATE_RUNNING, "why", sandbox_pb.StateChange.CAUSE_REQUEST)
    ]
    await edge.sandbox_stub.StartSandbox(sandbox_pb.StartSandboxRequest(sandbox_id="box"))
    await edge.sandbox_stub.StopSandbox(sandbox_pb.StopSandboxRequest(sandbox_id="box"))
    await edge.sandbox_stub.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id="box"))
    await edge.sandbox_stub.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id="box", wait=True))
    assert edge.sandboxes.asked == [
        *(("get", "box"), ("start", "box"), ("stop", "box")),
        *(("delete", "box", False), ("delete", "box", True)),
    ]
    edge.sandboxes.asked.clear()
    await edge.sandbox_stub.PauseSandbox(sandbox_pb.PauseSandboxRequest(sandbox_id="box"))
    await edge.sandbox_stub.ResumeSandbox(sandbox_pb.ResumeSandboxRequest(sandbox_id="box"))
    assert edge.sandboxes.asked == [("pause", "box"), ("resume", "box")]


async def test_a_sandbox_is_changed_in_what_is_set(edge: Edge):
    everything = sandbox_pb.UpdateSandboxRequest(
        sandbox_id="box",
        ttl_s=60,
        labels=sandbox_pb.Labels(labels={"a": "b"}),
        memory_limit_bytes=2**28,
        cpu_limit=0.5,
        pids_limit=64,
        idle_timeout_s=0,
    )
    await edge.sandbox_stub.UpdateSandbox(everything)
    await edge.sandbox_stub.UpdateSandbox(sandbox_pb.UpdateSandboxRequest(sandbox_id="box"))
    assert edge.sandboxes.asked == [
        ("update", "box", model.SandboxUpdate(60, {"a": "b"}, 2**28, 0.5, 64, 0.0)),
        ("update", "box", model.SandboxUpdate()),
    ]


async def test_tools_come_sorted_with_their_schema_as_json(edge: Edge):
    response = await edge.tool_stub.ListTools(tool_pb.ListToolsRequest())
    assert [tool.name for tool in response.tools] == ["python", "shell"]
    assert json.loads(response.tools[0].schema_json) == {"type": "function"}


async def test_the_daemon_describes_itself(edge: Edge):
    response = await edge.system_stub.GetInfo(system_pb.GetInfoRequest())
    assert (response.version, response.engine.name, response.guest_protocol_version) == ("1.2.3", "docker", 3)


async def test_run_answers_with_the_whole_result_as_bytes(edge: Edge):
    response = await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec(timeout_s=5)))
    assert edge.executions.ran == [model.ToolCall("box", "python_executor", {}, timeout_s=5.0)]
    assert (response.stdout, response.finished.exit_code) == (b"out\xff", 3)


async def test_a_file_is_read_in_chunks(edge: Edge):
    edge.files.content = bytes(range(256)) * 2000
    call = edge.file_stub.ReadFile(file_pb.ReadFileRequest(sandbox_id="box", path="x", offset=1, length=2))
    chunks = [message.data async for message in call]
    assert b"".join(chunks) == edge.files.content
    assert 65536 < max(len(chunk) for chunk in chunks) <= 256 * 1024  # pieces of 64 KiB that wait go together
    assert edge.files.asked == [("read", "box", "x", 1, 2)]


async def test_a_file_is_written_from_chunks(edge: Edge):
    call = edge.file_stub.WriteFile(
        [
            file_pb.WriteFileRequest(open=file_pb.OpenFile(sandbox_id="box", path="x", create_parents=True)),
            file_pb.WriteFileRequest(data=b"one "),
            file_pb.WriteFileRequest(data=b"two"),
        ]
    )
    assert (await call).size_bytes == 7
    assert edge.files.content == b"one two"
    assert edge.files.asked == [("write", "box", "x", 0o644, True)]


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([], "open"),
        ([file_pb.WriteFileRequest(data=b"x")], "open"),
        ([file_pb.WriteFileRequest(open=file_pb.OpenFile(path="x"))], "open.sandbox_id"),
        ([file_pb.WriteFileRequest(open=file_pb.OpenFile(sandbox_id="box"))] * 2, "open"),
    ],
)
async def test_a_malformed_upload_is_refused_and_writes_nothing(edge: Edge, messages, field):
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.file_stub.WriteFile(messages)
    assert fields(caught.value) == [field]
    assert edge.files.content == b""


# -- refusals ----------------------------------------------------------------------------------------------------


async def test_an_error_of_the_core_arrives_with_its_details(edge: Edge):
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.sandbox_stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="other"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert reason(caught.value) == "SANDBOX_NOT_FOUND"
    found = details(caught.value)["ResourceInfo"]
    assert found.resource_name == "other"  # type: ignore[attr-defined]
    assert edge.handled("ms_enclave.v1.SandboxService", "GetSandbox", "NotFound") == 1


async def test_the_first_of_several_errors_is_the_one_that_counts(edge: Edge):
    edge.executions.error = ExceptionGroup("both", [ExceptionGroup("in", [errors.NotServed("x")]), ValueError("y")])
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec()))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_fault_of_ours_tells_the_caller_where_to_look_and_nothing_else(edge: Edge, caplog):
    edge.executions.error = ValueError("SECRET=hunter2")
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec()))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "hunter2" not in caught.value.debug_error_string()
    info = details(caught.value)["ErrorInfo"]
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.log_id == info.metadata["log_id"]  # type: ignore[attr-defined]
    assert "hunter2" not in log.JsonLines().format(record)
    assert edge.handled("ms_enclave.v1.ExecutionService", "Run", "Internal") == 1


async def test_the_server_goes_on_after_a_fault(edge: Edge):
    edge.executions.error = KeyError("x")
    for _ in range(3):
        with pytest.raises(aio.AioRpcError):
            await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec()))
    edge.executions.error = None
    assert (await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec()))).finished.exit_code == 3


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x0a\xff\xff\xff\xff\xff", b"\x0a\x02\xff\xfe"], ids=["cut", "long", "utf8"]
)
async def test_malformed_bytes_are_the_callers_fault(edge: Edge, data: bytes):
    get = edge.channel.unary_unary("/ms_enclave.v1.SandboxService/GetSandbox")
    with pytest.raises(aio.AioRpcError) as caught:
        await get(data)
    assert fields(caught.value) == ["request"]
    execute = edge.channel.stream_stream("/ms_enclave.v1.ExecutionService/Execute")(iter([data]))
    with pytest.raises(aio.AioRpcError) as caught:
        await execute.read()
    assert fields(caught.value) == ["request"]


async def test_a_message_of_more_than_4_mib_is_refused(edge: Edge):
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec(parameters_json="x" * 5 * 2**20)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_parameters_of_more_than_1_mib_are_refused_with_a_hint(edge: Edge):
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec(parameters_json="x" * 2 * 2**20)))
    assert fields(caught.value) == ["spec.parameters_json"]
    assert "FileService" in caught.value.details()


async def test_headers_of_more_than_16_kib_are_refused(edge: Edge):
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.system_stub.GetInfo(system_pb.GetInfoRequest(), metadata=(("x-big", "y" * 20_000),))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_huge_refusal_still_fits_into_the_trailers(edge: Edge):
    violations = (errors.FieldViolation(f"spec.f{n}", "中" * 5000) for n in range(500))
    edge.executions.error = errors.InvalidRequest(*violations)
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec()))
    assert fields(caught.value)[0] == "spec.f0"


async def test_an_unknown_method_is_unimplemented_and_not_counted(edge: Edge):
    call = edge.channel.unary_unary("/ms_enclave.v1.SandboxService/Explode\n")
    with pytest.raises(aio.AioRpcError) as caught:
        await call(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert b"Explode" not in edge.metrics.render()


# -- log fields, counting, ends ----------------------------------------------------------------------------------


async def test_log_lines_of_a_call_carry_its_ids(edge: Edge, capture_lines):
    edge.executions.error = errors.NotServed("x")
    with pytest.raises(aio.AioRpcError):
        await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec(execution_id="run7")))
    (line,) = [line for line in capture_lines() if line["event"] == "call refused"]
    assert (line["rpc"], line["sandbox_id"], line["execution_id"]) == (
        "/ms_enclave.v1.ExecutionService/Run",
        "box",
        "run7",
    )


async def test_the_log_names_the_fields_of_a_malformed_request_but_does_not_quote_it(edge: Edge, capture_lines):
    with pytest.raises(aio.AioRpcError):
        await edge.execution_stub.Run(
            execution_pb.RunRequest(spec=spec(parameters_json='{"hunter2": 1, "hunter2": 2}'))
        )
    (line,) = [line for line in capture_lines() if line["event"] == "call refused"]
    assert line["why"] == "spec.parameters_json"


@pytest.fixture
def capture_lines():
    """Formats what is logged, as the daemon would, at the moment when it is logged."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Keep()
    handler.setFormatter(log.JsonLines())
    logger = logging.getLogger("enclaved")
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in lines]
    logger.removeHandler(handler)
    logger.setLevel(level)


async def ended(edge: Edge, count: int) -> None:
    """Waits until no more than ``count`` calls run."""
    async with asyncio.timeout(10):
        await edge.calls.wait_idle()
    assert edge.calls.active == count


async def test_a_call_whose_client_leaves_is_cancelled_and_counted(edge: Edge):
    call = edge.execution_stub.Run(execution_pb.RunRequest(spec=spec(tool="slow")))
    async with asyncio.timeout(10):
        await edge.executions.running.wait()
    call.cancel()
    await ended(edge, 0)
    assert edge.handled("ms_enclave.v1.ExecutionService", "Run", "Canceled") == 1


async def test_a_call_whose_deadline_passes_ends_with_deadline_exceeded(edge: Edge):
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.execution_stub.Run(execution_pb.RunRequest(spec=spec(tool="slow")), timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await ended(edge, 0)


async def test_a_closed_edge_refuses_new_calls_and_lets_running_ones_end(edge: Edge):
    running = asyncio.ensure_future(edge.execution_stub.Run(execution_pb.RunRequest(spec=spec(tool="slow"))))
    async with asyncio.timeout(10):
        await edge.executions.running.wait()
    edge.calls.close()
    with pytest.raises(aio.AioRpcError) as caught:
        await edge.system_stub.GetInfo(system_pb.GetInfoRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason(caught.value) == "SHUTTING_DOWN"
    assert edge.calls.active == 1
    edge.executions.may_end.set()
    assert (await running).finished.exit_code == 3
    await ended(edge, 0)


def test_the_sandbox_of_the_fakes_is_whole():
    assert BOX.id == "box"
