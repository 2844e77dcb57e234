"""The policy over gRPC: refusals that name their rule, quotas, and a new reading of the file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import image_service_pb2 as image_pb
from ms_enclave.v1 import image_service_pb2_grpc, pool_service_pb2_grpc
from ms_enclave.v1 import pool_service_pb2 as pool_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from enclaved.config import ConfigError
from enclaved.daemon import Reloads
from tests.service.daemons import PATIENCE_S, Running, daemon, python, settings_in, short_directory

POLICY = """
[roles.default]
images = ["python:3.11-slim", "tools:*"]
memory_max_bytes = 268435456
sandboxes_max = 3
creates_per_minute = 4
executions_per_sandbox_max = 1
executions_per_minute = 3
output_max_bytes = 1000
env_names = ["APP_*"]
may_pull = false

[roles.default.tool_options.python_executor]
forced = { timeout = 20 }
"""


class Governed:
    """A daemon with a policy file."""

    def __init__(self, folder: Path, text: str) -> None:
        self.file = folder / "policy.toml"
        self.file.write_text(text)
        self.settings = settings_in(folder, policy__file=str(self.file))
        self.reloads = Reloads(lambda: self.settings)
        self.running: Running

    async def sample(self, name: str) -> str:
        _, text = await self.running.get("/metrics")
        return next((line.rpartition(" ")[2] for line in text.splitlines() if line.rpartition(" ")[0] == name), "0.0")

    async def reload(self, text: str, outcome: str = "ok") -> None:
        """Writes the file, has it read, and waits until that is counted."""
        name = f'enclaved_config_reloads_total{{outcome="{outcome}"}}'
        before = await self.sample(name)
        self.file.write_text(text)
        self.reloads.ask("the test")
        async with asyncio.timeout(PATIENCE_S):
            while await self.sample(name) == before:
                pass


@asynccontextmanager
async def governed(text: str) -> AsyncIterator[Governed]:
    async with short_directory() as folder:
        found = Governed(folder, text)
        async with daemon(found.settings, reloads=found.reloads) as found.running:
            yield found


@pytest.fixture
async def policed() -> AsyncIterator[Governed]:
    async with governed(POLICY) as found:
        yield found


def details(error: aio.AioRpcError) -> tuple[dict[str, str], list[str]]:
    """The metadata of a refusal, and what else comes with it."""
    metadata: Any = error.trailing_metadata()
    status = status_pb2.Status.FromString(dict(metadata)["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return dict(info.metadata), [detail.TypeName().rpartition(".")[2] for detail in status.details[1:]]


async def refused(call: Any, code: grpc.StatusCode) -> tuple[dict[str, str], list[str]]:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code
    return details(caught.value)


def creation(sandbox_id: str = "", **spec: Any) -> sandbox_pb.CreateSandboxRequest:
    return sandbox_pb.CreateSandboxRequest(sandbox_id=sandbox_id, spec=sandbox_pb.SandboxSpec(**spec))


REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"privileged": True}, "privileged", "spec.privileged"),
    ({"image": "evil:1"}, "image", "spec.image"),
    ({"image": "127.0.0.1:5000/python:3.11-slim"}, "image", "spec.image"),
    ({"memory_limit_bytes": 2**30}, "resources", "spec.memory_limit_bytes"),
    ({"network_enabled": True}, "network", "spec.network_enabled"),
    ({"network": "host"}, "network", "spec.network"),
    ({"volumes": [sandbox_pb.Volume(host_path="/", bind="/host")]}, "volumes", "spec.volumes"),
    ({"volumes": [sandbox_pb.Volume(host_path="/var/run/docker.sock", bind="/s")]}, "volumes", "spec.volumes"),
    ({"ports": [sandbox_pb.PortMapping(container_port="80")]}, "ports", "spec.ports"),
    ({"extra_hosts": {"a": "10.0.0.1"}}, "extra_hosts", "spec.extra_hosts"),
    ({"command": ["true"]}, "command", "spec.command"),
    ({"env_vars": {"HOME": "/"}}, "env", "spec.env_vars"),
)


async def test_what_the_role_does_not_grant_is_refused_by_its_rule(policed: Governed) -> None:
    for spec, rule, field in REFUSED:
        call = policed.running.sandbox_stub.CreateSandbox(creation(**spec))
        metadata, _ = await refused(call, grpc.StatusCode.PERMISSION_DENIED)
        assert (metadata["rule"], metadata["field"]) == (rule, field)
    for rule in {rule for _, rule, _ in REFUSED}:
        count = sum(each == rule for _, each, _ in REFUSED)
        assert await policed.sample(f'enclaved_policy_refusals_total{{rule="{rule}"}}') == f"{count}.0"
    listed = await policed.running.sandbox_stub.ListSandboxes(sandbox_pb.ListSandboxesRequest())
    assert not listed.sandboxes


async def test_the_numbers_of_the_file_are_what_a_sandbox_gets(policed: Governed) -> None:
    found = await policed.running.sandbox_stub.CreateSandbox(creation("box"))
    assert found.sandbox.spec.memory_limit_bytes == 268435456
    options = {tool.name: tool.options_json for tool in found.sandbox.spec.tools.tools}
    assert options == {"file_operation": "{}", "python_executor": '{"timeout": 20}', "shell_executor": "{}"}
    update = sandbox_pb.UpdateSandboxRequest(sandbox_id="box", memory_limit_bytes=2**30)
    metadata, _ = await refused(policed.running.sandbox_stub.UpdateSandbox(update), grpc.StatusCode.PERMISSION_DENIED)
    assert (metadata["rule"], metadata["limit"]) == ("resources", "268435456")


async def test_sandboxes_and_their_rate_have_quotas_and_the_answer_says_when_again(policed: Governed) -> None:
    stub = policed.running.sandbox_stub
    for number in range(3):
        await stub.CreateSandbox(creation(f"box-{number}"))
    _, more = await refused(stub.CreateSandbox(creation("box-3")), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert more == ["QuotaFailure", "RetryInfo"]
    await stub.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id="box-0"))
    await stub.CreateSandbox(creation("box-3"))
    await stub.DeleteSandbox(sandbox_pb.DeleteSandboxRequest(sandbox_id="box-1"))
    _, more = await refused(stub.CreateSandbox(creation("box-4")), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert more == ["QuotaFailure", "RetryInfo"]
    assert await policed.sample('enclaved_quota_refusals_total{limit="sandboxes_max"}') == "1.0"
    assert await policed.sample('enclaved_quota_refusals_total{limit="creates_per_minute"}') == "1.0"


async def test_a_pool_counts_as_its_members(policed: Governed) -> None:
    stub: Any = pool_service_pb2_grpc.PoolServiceStub(policed.running.channel)  # type: ignore[no-untyped-call]
    request = pool_pb.InitializePoolRequest(size=4)
    _, more = await refused(stub.InitializePool(request), grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert more == ["QuotaFailure", "RetryInfo"]
    request = pool_pb.InitializePoolRequest(size=1, spec=sandbox_pb.SandboxSpec(image="evil:1"))
    metadata, _ = await refused(stub.InitializePool(request), grpc.StatusCode.PERMISSION_DENIED)
    assert metadata["rule"] == "image"


async def test_executions_and_their_output_have_limits(policed: Governed) -> None:
    running = policed.running
    await running.sandbox_stub.CreateSandbox(creation("box"))
    loud = await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print('x' * 5000)")))
    assert loud.finished.verdict == execution_pb.VERDICT_OUTPUT_LIMIT
    call = running.execution_stub.Run(execution_pb.RunRequest(spec=python("1", output_limit_bytes=2000)))
    metadata, _ = await refused(call, grpc.StatusCode.PERMISSION_DENIED)
    assert (metadata["rule"], metadata["field"]) == ("resources", "output_limit_bytes")
    detached = python("import time; time.sleep(600)", detach=True)
    await running.execution_stub.Run(execution_pb.RunRequest(spec=detached))
    call = running.execution_stub.Run(execution_pb.RunRequest(spec=python("1")))
    await refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert await policed.sample('enclaved_quota_refusals_total{limit="executions_per_sandbox_max"}') == "1.0"


async def test_images_are_pulled_by_who_may_and_from_the_list(policed: Governed) -> None:
    stub: Any = image_service_pb2_grpc.ImageServiceStub(policed.running.channel)  # type: ignore[no-untyped-call]
    for image, rule in (("evil:1", "image"), ("[::1]:5000/tools:1", "image")):
        call = stub.PullImage(image_pb.PullImageRequest(image=image))
        metadata, _ = await refused(call.read(), grpc.StatusCode.PERMISSION_DENIED)
        assert metadata["rule"] == rule


async def test_a_changed_file_counts_for_the_next_request_and_not_for_sandboxes_there_are(policed: Governed) -> None:
    stub = policed.running.sandbox_stub
    old = (await stub.CreateSandbox(creation("old"))).sandbox
    await policed.reload("[roles.default]\nmemory_max_bytes = 134217728\n")
    new = (await stub.CreateSandbox(creation("new", env_vars={"ANY": "1"}))).sandbox
    assert new.spec.memory_limit_bytes == 134217728
    again = await stub.GetSandbox(sandbox_pb.GetSandboxRequest(sandbox_id="old"))
    assert again.sandbox.spec == old.spec


BAD_FILES = (
    ("[roles.default]\n\nmemory_mx_bytes = 1\n", "line 3"),
    ("[roles.default\n", "line 1"),
    ("[roles.x]\nusers=['q']", "line 2"),
)


async def test_a_bad_file_changes_nothing_is_logged_with_its_line_and_counted(
    policed: Governed, caplog: pytest.LogCaptureFixture
) -> None:
    for text, line in BAD_FILES:
        caplog.clear()
        await policed.reload(text, "error")
        assert await policed.sample("enclaved_config_last_reload_successful") == "0.0"
        (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
        (problem,) = vars(record)["problems"]
        assert line in problem
    call = policed.running.sandbox_stub.CreateSandbox(creation(image="evil:1"))
    metadata, _ = await refused(call, grpc.StatusCode.PERMISSION_DENIED)
    assert metadata["rule"] == "image"
    await policed.reload(POLICY)
    assert await policed.sample("enclaved_config_last_reload_successful") == "1.0"


@pytest.mark.parametrize("text", ["[roles.default]\nprivileged = true\n", "nonsense"])
async def test_a_daemon_with_a_bad_policy_file_does_not_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"line|TOML"):
        async with governed(text):
            pass


async def test_a_daemon_whose_policy_file_is_gone_does_not_start() -> None:
    async with short_directory() as folder:
        with pytest.raises(ConfigError, match="cannot be read"):
            async with daemon(settings_in(folder, policy__file=f"{folder}/none.toml")):
                pass


async def test_an_embedded_daemon_has_a_role_of_its_own_that_the_file_can_narrow() -> None:
    async with short_directory() as folder:
        file = folder / "policy.toml"
        file.write_text("[roles.embedded]\ncommand = false\n")
        settings = settings_in(folder, policy__file=str(file))
        async with daemon(settings, embedded=True, working_dir=str(folder)) as running:
            metadata, _ = await refused(
                running.sandbox_stub.CreateSandbox(creation(command=["true"])), grpc.StatusCode.PERMISSION_DENIED
            )
            assert metadata["rule"] == "command"
            call = running.sandbox_stub.CreateSandbox(creation(privileged=True))
            metadata, _ = await refused(call, grpc.StatusCode.PERMISSION_DENIED)
            assert metadata["rule"] == "privileged"


async def test_over_http_a_refusal_names_its_rule_and_a_quota_says_when_again() -> None:
    async with short_directory() as folder:
        file = folder / "policy.toml"
        file.write_text('[roles.keys]\nusers = ["api_key"]\ncreates_per_minute = 1\n')
        settings = settings_in(
            folder, policy__file=str(file), listen__http=f"unix:{folder}/h.sock", http__api_keys="k" * 32
        )
        transport = httpx.AsyncHTTPTransport(uds=f"{folder}/h.sock")
        headers = {"X-API-Key": "k" * 32}
        async with (
            daemon(settings),
            httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S) as client,
        ):
            answer = await client.post("/sandbox/create", json={"privileged": True}, headers=headers)
            assert (answer.status_code, "policy rule: privileged" in answer.text) == (403, True)
            for status in (200, 429):
                answer = await client.post("/sandbox/create", json={}, headers=headers)
                assert answer.status_code == status
            assert 0 < int(answer.headers["Retry-After"]) <= 60
