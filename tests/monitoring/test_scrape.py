"""A real Prometheus scrapes a daemon, and promtool reads what it gets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from grpc import aio
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb

from tests.service.daemons import PATIENCE_S, Running, python

RULES = Path(__file__).parents[2] / "docs" / "monitoring" / "alerts.yml"
ASK_AGAIN_S = 0.1


@asynccontextmanager
async def prometheus(programs: Path, folder: Path, target: str) -> AsyncIterator[str]:
    """Runs Prometheus on loopback with our alert rules; gives the address of its API."""
    with socket.create_server(("127.0.0.1", 0)) as chosen:
        address = f"127.0.0.1:{chosen.getsockname()[1]}"
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 200ms, evaluation_interval: 200ms}\n"
        f"rule_files: ['{RULES}']\n"
        f"scrape_configs: [{{job_name: enclaved, static_configs: [{{targets: ['{target}']}}]}}]\n"
    )
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            programs / "prometheus",
            *(f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"),
            f"--web.listen-address={address}",
            stdout=log,
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


class Api:
    """Asks Prometheus until it has the answer: scrapes take their time."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._url = session, url

    async def get(self, path: str, **parameters: str) -> Any:
        """Asks once; nothing while Prometheus starts."""
        try:
            async with self._session.get(f"{self._url}/api/v1/{path}", params=parameters) as response:
                return (await response.json())["data"] if response.status == 200 else {}
        except aiohttp.ClientConnectorError:
            return {}

    async def until(self, query: str, value: str) -> None:
        """Waits until a query has one result with a value."""
        seen: list[Any] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                while [sample["value"][1] for sample in seen] != [value]:
                    await asyncio.sleep(ASK_AGAIN_S)
                    seen = (await self.get("query", query=query)).get("result", [])
        except TimeoutError:
            pytest.fail(f"{query} never became {value}: {seen}")


@asynccontextmanager
async def scraped(programs: Path, folder: Path, running: Running) -> AsyncIterator[Api]:
    async with prometheus(programs, folder, running.addresses.metrics) as url, aiohttp.ClientSession() as session:
        yield Api(session, url)


async def test_prometheus_has_what_the_daemon_counts(programs: Path, tmp_path: Path, running: Running):
    await running.create()
    async with scraped(programs, tmp_path, running) as api:
        await api.until('up{job="enclaved"}', "1")
        await api.until('enclaved_sandboxes{state="running"}', "1")
        await api.until('enclaved_executions_total{verdict="EXITED"} or vector(0)', "0")
        await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))
        await api.until('enclaved_executions_total{tool="python_executor",verdict="EXITED"}', "1")
        await api.until('grpc_server_handled_total{grpc_method="Run",grpc_code="OK"}', "1")
        await api.until('enclaved_engine_calls_total{call="create",outcome="ok"}', "1")
        await api.until('count(enclaved_execution_phase_seconds_bucket{le="+Inf"})', "4")
        (target,) = (await api.get("targets"))["activeTargets"]
        assert target["lastError"] == ""


async def test_prometheus_evaluates_our_rules_over_it_and_none_fires(programs: Path, tmp_path: Path, running: Running):
    async with scraped(programs, tmp_path, running) as api:
        await api.until("enclaved_engine_up", "1")
        async with asyncio.timeout(PATIENCE_S):
            rules: list[Any] = []
            while not rules or any(rule["health"] == "unknown" for rule in rules):
                await asyncio.sleep(ASK_AGAIN_S)
                rules = [rule for group in (await api.get("rules")).get("groups", []) for rule in group["rules"]]
        assert [(rule["name"], rule["health"], rule["state"]) for rule in rules if rule["health"] != "ok"] == []
        assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


async def test_promtool_finds_nothing_wrong_with_the_metrics(programs: Path, running: Running):
    await running.create()
    await running.execution_stub.Run(execution_pb.RunRequest(spec=python("print(1)")))
    _, text = await running.get("/metrics")
    tool = await asyncio.create_subprocess_exec(
        *(programs / "promtool", "check", "metrics"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await tool.communicate(text.encode())
    assert (tool.returncode, out.decode()) == (0, "")


async def series(running: Running) -> set[str]:
    """Every series that a scrape has now."""
    _, text = await running.get("/metrics")
    return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}


async def abuse(running: Running, word: str) -> None:
    """Sends names of the caller's choice wherever the contract takes one."""
    box = f"box-{word}"
    other_tool = execution_pb.ExecutionSpec(sandbox_id=box, tool=f"tool-{word}")
    calls: list[tuple[Any, Any]] = [
        (running.sandbox_stub.CreateSandbox, sandbox_pb.CreateSandboxRequest(sandbox_id=box)),
        (running.execution_stub.Run, execution_pb.RunRequest(spec=python("print(1)", sandbox_id=box))),
        (running.execution_stub.Run, execution_pb.RunRequest(spec=other_tool)),
        (running.sandbox_stub.GetSandbox, sandbox_pb.GetSandboxRequest(sandbox_id=f"none-{word}")),
        (running.channel.unary_unary(f"/ms_enclave.v1.SandboxService/{word}"), b""),
        (running.channel.unary_unary(f"/{word}.Service/Method"), b""),
    ]
    await running.get(f"/{word}")
    for call, request in calls:
        try:
            await call(request)
        except aio.AioRpcError:
            continue


async def test_nothing_that_a_caller_chooses_becomes_a_label(running: Running):
    await abuse(running, "first")
    before = await series(running)
    for word in ("second", "third", "fourth"):
        await abuse(running, word)
    assert await series(running) == before
    assert not [line for line in before if "first" in line]
