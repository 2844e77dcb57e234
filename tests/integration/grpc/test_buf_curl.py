"""A client that knows nothing of this project finds the services by reflection over the unix socket, and uses them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from google.rpc import error_details_pb2

from tests.integration.grpc.client import Buf

SANDBOXES = "ms_enclave.v1.SandboxService"
EXECUTIONS = "ms_enclave.v1.ExecutionService"
FILES = "ms_enclave.v1.FileService"


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def spec(sandbox_id: str, tool: str, **parameters: Any) -> dict[str, Any]:
    return {"sandboxId": sandbox_id, "tool": tool, "parametersJson": json.dumps(parameters)}


@pytest.fixture
def box(buf: Buf) -> Iterator[str]:
    """The id of a sandbox for one test."""
    limits = {"memoryLimitBytes": str(128 * 1024**2), "cpuLimit": 0.5}
    made = buf.call(f"{SANDBOXES}/CreateSandbox", {"spec": limits, "labels": {"team": "a"}}).message["sandbox"]
    assert made["state"] == "STATE_RUNNING"
    assert (made["spec"]["memoryLimitBytes"], made["spec"]["cpuLimit"]) == (str(128 * 1024**2), 0.5)
    yield made["id"]
    assert buf.call(f"{SANDBOXES}/DeleteSandbox", {"sandboxId": made["id"], "wait": True}).message == {}
    gone = buf.call(f"{SANDBOXES}/GetSandbox", {"sandboxId": made["id"]})
    assert gone.reason == "SANDBOX_NOT_FOUND"
    assert gone.detail(error_details_pb2.ResourceInfo).resource_name == made["id"]


def test_services_and_methods_are_listed(buf: Buf):
    services = buf.run("--list-services", "http://localhost").stdout.split()
    assert [name for name in services if not name.startswith("grpc.")] == [
        f"ms_enclave.v1.{name}Service"
        for name in ("Context", "Execution", "File", "Image", "Pool", "Sandbox", "System", "Tool")
    ]
    assert {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= set(services)
    methods = buf.run("--list-methods", "http://localhost").stdout.split()
    assert {f"{EXECUTIONS}/{name}" for name in ("Run", "Execute", "Attach", "CancelExecution")} <= set(methods)


def test_the_daemon_and_each_service_are_healthy(buf: Buf):
    for service in ("", SANDBOXES, EXECUTIONS, FILES):
        assert buf.call("grpc.health.v1.Health/Check", {"service": service}).message == {"status": "SERVING"}
    unknown = buf.call("grpc.health.v1.Health/Check", {"service": "nope"})
    assert (unknown.exit_code, unknown.error["code"]) == (5 << 3, "not_found")


def test_the_daemon_says_what_it_is_and_what_tools_it_has(buf: Buf):
    info = buf.call("ms_enclave.v1.SystemService/GetInfo").message
    assert (info["engine"]["name"], info["engine"]["available"]) == ("docker", True)
    tools = buf.call("ms_enclave.v1.ToolService/ListTools").message["tools"]
    assert [tool["name"] for tool in tools] == ["file_operation", "python_executor", "shell_executor"]
    assert tools[2]["aliases"] == ["bash"]
    assert json.loads(tools[1]["schemaJson"])["function"]["parameters"]["required"] == ["code"]


def test_a_sandbox_is_found_by_label(buf: Buf, box: str):
    found = buf.call(f"{SANDBOXES}/ListSandboxes", {"labels": {"team": "a"}}).message["sandboxes"]
    assert [sandbox["id"] for sandbox in found] == [box]
    assert "sandboxes" not in buf.call(f"{SANDBOXES}/ListSandboxes", {"labels": {"team": "b"}}).message


def test_a_tool_runs_and_its_end_is_data(buf: Buf, box: str):
    answer = buf.call(f"{EXECUTIONS}/Run", {"spec": spec(box, "python_executor", code="print(6 * 7)")}).message
    assert (answer["stdout"], answer["finished"]["verdict"]) == (b64(b"42\n"), "VERDICT_EXITED")
    answer = buf.call(f"{EXECUTIONS}/Run", {"spec": spec(box, "python_executor", code="1 / 0")}).message
    assert answer["finished"]["verdict"] == "VERDICT_EXCEPTION"
    assert answer["finished"]["exception"] == {"type": "ZeroDivisionError", "message": "division by zero"}


def test_a_stream_takes_input_and_gives_output(buf: Buf, box: str):
    command = "read name; echo hello $name; echo bye >&2; exit 3"
    answer = buf.call(
        f"{EXECUTIONS}/Execute",
        {"start": {**spec(box, "bash", command=command), "stdin": True, "executionId": "greeting"}},
        {"stdin": {"data": b64(b"wor")}},
        {"stdin": {"data": b64(b"ld\n")}},
        {"endOfInput": {}},
    )
    events = [message["event"] for message in answer.messages]
    assert answer.exit_code == 0
    assert events[0]["started"]["executionId"] == "greeting"
    output = {"CHANNEL_STDOUT": b"", "CHANNEL_STDERR": b""}
    for event in events[1:-1]:
        output[event["output"]["channel"]] += base64.b64decode(event["output"]["data"])
    assert output == {"CHANNEL_STDOUT": b"hello world\n", "CHANNEL_STDERR": b"bye\n"}
    finished = events[-1]["finished"]
    assert (finished["verdict"], finished["exitCode"], finished["attested"]) == ("VERDICT_EXITED", 3, True)

    again = buf.call(f"{EXECUTIONS}/Attach", {"executionId": "greeting", "observe": True})
    assert again.messages[-1]["event"]["finished"] == finished


def test_samples_tell_what_the_execution_and_its_sandbox_use(buf: Buf, box: str):
    start = {**spec(box, "bash", command="head -c 20000000 /dev/zero > big; sleep 1"), "statsIntervalS": 0.1}
    answer = buf.call(f"{EXECUTIONS}/Execute", {"start": start})
    samples = [message["event"]["stats"] for message in answer.messages if "stats" in message["event"]]
    # One that is taken between the program's end and its report counts no process, and JSON leaves a nought out.
    last = [sample for sample in samples if sample["execution"].get("pids")][-1]
    assert int(last["sandbox"]["memoryBytes"]) > 20_000_000  # the working directory is memory
    assert int(last["sandbox"]["memoryPeakBytes"]) >= int(last["sandbox"]["memoryBytes"])
    assert last["sandbox"]["pids"] > last["execution"]["pids"]  # the guest is there, too
    assert last["sandbox"]["cpuUserS"] + last["sandbox"]["cpuSystemS"] > 0


def test_a_detached_execution_is_signalled_and_waited_for(buf: Buf, box: str):
    detached = {**spec(box, "bash", command="sleep 60"), "detach": True, "executionId": "sleeper"}
    assert buf.call(f"{EXECUTIONS}/Run", {"spec": detached}).message["running"] is True
    buf.call(f"{EXECUTIONS}/SignalExecution", {"executionId": "sleeper", "signal": {"signal": 15}})
    ended = buf.call(f"{EXECUTIONS}/WaitExecution", {"executionId": "sleeper"}).message["execution"]
    assert (ended["state"], ended["finished"]["signalSender"]) == ("EXECUTION_STATE_ENDED", "SIGNAL_SENDER_CALLER")
    listed = buf.call(f"{EXECUTIONS}/ListExecutions", {"sandboxId": box}).message["executions"]
    assert [execution["executionId"] for execution in listed] == ["sleeper"]


def test_contexts_are_opened_used_and_closed(buf: Buf, box: str):
    contexts = "ms_enclave.v1.ContextService"
    named = {"sandboxId": box, "name": "mine"}
    assert buf.call(f"{contexts}/OpenContext", named).message["context"]["alive"] is True
    call = {**spec(box, "python_executor", code="x = 1"), "context": "mine"}
    finished = buf.call(f"{EXECUTIONS}/Run", {"spec": call}).message["finished"]
    assert (finished["verdict"], finished["statePreserved"]) == ("VERDICT_EXITED", True)
    assert buf.call(f"{contexts}/ListContexts", {"sandboxId": box}).message["contexts"][-1]["calls"] == "1"
    assert buf.call(f"{contexts}/CloseContext", named).message == {}
    assert buf.call(f"{contexts}/CloseContext", named).reason == "CONTEXT_NOT_FOUND"


def test_limits_that_were_met_come_with_peak_and_limit(buf: Buf, box: str):
    code = "x = bytearray(10**9)"
    call = spec(box, "python_executor", code=code, isolated=True)
    finished = buf.call(f"{EXECUTIONS}/Run", {"spec": call}).message["finished"]
    assert (finished["verdict"], finished["signalSender"]) == ("VERDICT_OUT_OF_MEMORY", "SIGNAL_SENDER_KERNEL")
    (hit,) = finished["limitsHit"]
    assert (hit["limit"], int(hit["maximum"])) == ("memory", 128 * 1024**2)
    assert 0 < int(hit["peak"]) <= int(hit["maximum"])


def test_files_go_in_and_out(buf: Buf, box: str):
    written = buf.call(
        f"{FILES}/WriteFile",
        {"open": {"sandboxId": box, "path": "notes/a.bin", "createParents": True}},
        {"data": b64(bytes(70_000))},
        {"data": b64(b"end")},
    )
    assert written.message == {"sizeBytes": "70003"}
    read = buf.call(f"{FILES}/ReadFile", {"sandboxId": box, "path": "notes/a.bin", "offset": 69_999})
    assert b"".join(base64.b64decode(message["data"]) for message in read.messages) == b"\0end"


def test_errors_have_a_code_and_details_that_say_what_is_wrong(buf: Buf, box: str):
    answer = buf.call(f"{EXECUTIONS}/Run", {"spec": spec(box, "python_executor", code=5, colour="red")})
    assert (answer.exit_code, answer.error["code"], answer.reason) == (3 << 3, "invalid_argument", "INVALID_REQUEST")
    violations = answer.detail(error_details_pb2.BadRequest).field_violations
    assert {violation.field for violation in violations} == {"parameters.code", "parameters.colour"}

    answer = buf.call(f"{SANDBOXES}/CreateSandbox", {"spec": {"networkEnabled": True}})
    assert (answer.exit_code, answer.error["code"]) == (7 << 3, "permission_denied")
    info = answer.detail(error_details_pb2.ErrorInfo)
    assert (info.domain, info.reason) == ("enclaved.ms-enclave", "POLICY_DENIED")
    assert (info.metadata["rule"], info.metadata["field"]) == ("network", "spec.network_enabled")

    answer = buf.call(f"{FILES}/ReadFile", {"sandboxId": box, "path": "missing"})
    assert (answer.error["code"], answer.reason) == ("not_found", "FILE_NOT_FOUND")


def test_stop_and_start(buf: Buf, box: str):
    assert buf.call(f"{SANDBOXES}/StopSandbox", {"sandboxId": box}).message["sandbox"]["state"] == "STATE_STOPPED"
    answer = buf.call(f"{EXECUTIONS}/Run", {"spec": spec(box, "python_executor", code="1")})
    assert (answer.error["code"], answer.reason) == ("failed_precondition", "WRONG_STATE")
    assert buf.call(f"{SANDBOXES}/StartSandbox", {"sandboxId": box}).message["sandbox"]["state"] == "STATE_RUNNING"
