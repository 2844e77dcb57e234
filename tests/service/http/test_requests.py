"""What clients send: whole dumped configurations, bodies that are no good, archives, and many requests at once."""

from __future__ import annotations

import asyncio
import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from enclaved.gateway import intake
from tests.service.daemons import PATIENCE_S, Running

DUMPED = {
    "timeout": 30,
    "tools_config": {},
    "working_dir": "/sandbox",
    "env_vars": {},
    "resource_limits": {},
    "image": "python:3.11-slim",
    "command": None,
    "volumes": {},
    "ports": {},
    "network": "bridge",
    "extra_hosts": {},
    "platform": None,
    "memory_limit": "4g",
    "cpu_limit": 2.0,
    "network_enabled": True,
    "privileged": False,
    "remove_on_exit": True,
    "pull_progress": False,
    "pull_progress_interval": 3.0,
    "docker_executor_workers": 8,
}
"""What a client posts that dumps a configuration of which nothing was set."""

DUMPED_TOOL = {
    "enabled": True,
    "timeout": 30,
    "parameters": {},
    "restrictions": {},
    "python_path": "python3",
    "allowed_modules": None,
    "blocked_modules": [],
    "max_output_size": 1048576,
}


async def create(api: httpx.AsyncClient, **config: Any) -> str:
    """Creates a sandbox and returns its id."""
    body = {"tools_config": ["python_executor", "shell_executor", "file_operation"], **config}
    answer = await api.post("/sandbox/create", params={"sandbox_type": "docker"}, json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["sandbox_id"])


async def execute(api: httpx.AsyncClient, sandbox_id: str, tool: str, **parameters: Any) -> dict[str, Any]:
    """Runs a tool and returns its result."""
    body = {"sandbox_id": sandbox_id, "tool_name": tool, "parameters": parameters}
    answer = await api.post("/sandbox/tool/execute", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


# -- configurations ----------------------------------------------------------------------------------------------


async def test_a_whole_dumped_configuration_asks_for_nothing(api: httpx.AsyncClient):
    sandbox_id = await create(api, **DUMPED)
    info = (await api.get(f"/sandbox/{sandbox_id}")).json()
    assert {name: info["config"][name] for name in ("memory_limit", "cpu_limit", "network_enabled", "network")} == {
        "memory_limit": "512m",
        "cpu_limit": 1.0,
        "network_enabled": False,
        "network": "none",
    }
    assert info["available_tools"] == {}
    assert {item["field"] for item in info["metadata"]["adjustments"]} == {"network_enabled", "network"}


async def test_what_a_sandbox_shows_can_be_asked_for_again(api: httpx.AsyncClient):
    first = (await api.get(f"/sandbox/{await create(api)}")).json()["config"]
    second = (await api.get(f"/sandbox/{await create(api, **first)}")).json()["config"]
    assert second == first


async def test_a_dumped_configuration_of_a_tool_asks_for_nothing(api: httpx.AsyncClient):
    tools = {"python_executor": DUMPED_TOOL, "shell_executor": {"enabled": False}}
    sandbox_id = await create(api, tools_config=tools)
    assert list((await api.get(f"/sandbox/{sandbox_id}/tools")).json()) == ["python_executor"]
    assert (await execute(api, sandbox_id, "python_executor", code="print(1)"))["output"] == "1\n"


async def test_null_enables_every_tool(api: httpx.AsyncClient):
    sandbox_id = await create(api, tools_config=None)
    assert len((await api.get(f"/sandbox/{sandbox_id}/tools")).json()) >= 3


async def test_what_is_asked_for_is_what_the_sandbox_has(api: httpx.AsyncClient):
    asked = {
        "memory_limit": "256M",
        "cpu_limit": 0.5,
        "timeout": 7,
        "env_vars": {"NAME": "value"},
        "resource_limits": {"pids_limit": 64, "tmp_size": "8m", "ttl": 600},
        "remove_on_exit": False,
    }
    sandbox_id = await create(api, **asked)
    config = (await api.get(f"/sandbox/{sandbox_id}")).json()["config"]
    limits = config.pop("resource_limits")
    assert {name: config[name] for name in asked if name != "resource_limits"} == {
        **{name: value for name, value in asked.items() if name != "resource_limits"},
        "memory_limit": "256m",
    }
    assert (limits["pids_limit"], limits["tmp_size"], limits["ttl"]) == (64, 8 * 2**20, 600)
    result = await execute(api, sandbox_id, "shell_executor", command="echo $NAME")
    assert result["output"] == "value\n"


@pytest.mark.parametrize(
    ("config", "status", "detail"),
    [
        ({"memory_limit": "8g"}, 403, "memory_limit_bytes is 8589934592, and at most 4294967296 is granted"),
        ({"privileged": True}, 403, "no policy grants privileged sandboxes"),
        ({"network": "host"}, 403, "no policy grants the network 'host'"),
        ({"volumes": {"/etc": {"bind": "/x", "mode": "ro"}}}, 403, "which no policy lets anybody mount"),
        ({"volumes": {"/srv": {"bind": "/x", "mode": "ro"}}}, 403, "nor any other host directory"),
        ({"ports": {"80/tcp": ["127.0.0.1", 8080]}}, 403, "publishes no ports"),
        ({"command": "sleep 1"}, 403, "starts no command"),
        ({"extra_hosts": {"a": "1.2.3.4"}}, 403, "grants no lines of /etc/hosts"),
        ({"memory_limit": "1m"}, 400, "memory_limit: must be a whole number of bytes, at least"),
        ({"cpu_limit": 0}, 400, "CPU limit must be positive"),
        ({"timeout": -1}, 400, "must be a number of seconds"),
        ({"memory_limitt": "1g"}, 400, "memory_limitt\n  Extra inputs are not permitted"),
        ({"cap_add": ["ALL"]}, 400, "cap_add\n  Extra inputs are not permitted"),
        ({"resource_limits": {"disk": 1}}, 400, "unknown limit 'disk'; known are"),
        ({"resource_limits": {"pids_limit": "many"}}, 400, "pids_limit must be a positive number"),
        ({"tools_config": ["nope"]}, 400, "tools_config: no tool is called 'nope'"),
        ({"tools_config": {"python_executor": {"allowed_modules": "os"}}}, 400, "allowed_modules"),
        ({"tools_config": {"python_executor": {"restrictions": {"x": 1}}}}, 400, "restrictions: is no option of"),
        ({"volumes": {"/x": {}}}, 400, "a volume must be"),
        ({"ports": {"80": "x:y"}}, 400, "a port must go to a port"),
        ({"env_vars": {"LD_PRELOAD": "x"}}, 400, "reserved"),
        ({"working_dir": "/etc"}, 400, "would hide a directory of the system"),
    ],
)
async def test_what_may_not_be_had_is_refused_by_name(api: httpx.AsyncClient, config, status: int, detail: str):
    answer = await api.post("/sandbox/create", json=config)
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"].startswith("Failed to create sandbox: ")
    assert detail in answer.json()["detail"]
    assert (await api.get("/stats")).json()["total_sandboxes"] == 0


@pytest.mark.parametrize("kind", ["docker_notebook", "volcengine", "dummy"])
async def test_a_kind_of_sandbox_that_is_not_served_is_refused(api: httpx.AsyncClient, kind: str):
    answer = await api.post("/sandbox/create", params={"sandbox_type": kind}, json={})
    assert (answer.status_code, json.loads(answer.headers["x-enclave-error"])["reason"]) == (400, "NOT_IMPLEMENTED")


async def test_an_id_can_be_chosen_once(api: httpx.AsyncClient):
    answers = [await api.post("/sandbox/create", params={"sandbox_id": "mine"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 409]
    assert answers[0].json() == {"sandbox_id": "mine"}


# -- bodies ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b'{"memory_limit": "1g", "memory_limit": "2g"}', 400, "has the key 'memory_limit' twice"),
        (b'{"cpu_limit": NaN}', 400, "has NaN, which is not JSON"),
        (b'{"cpu_limit": 1e999}', 400, "too large for a double"),
        (b'{"image": "\\ud800"}', 400, "half a surrogate pair"),
        (b'{"image": "\xff"}', 400, "is not UTF-8"),
        (b"[" * 10_000, 400, "nested too deeply"),
        (b"[" * 100_000, 400, "has more than 20000 strings, commas and brackets"),
        (b"{", 422, "JSON decode error"),
        (b"[1]", 422, "Input should be a valid dictionary"),
        (b'{"image": "' + b"x" * intake.JSON_BYTES_MAX + b'"}', 413, "has more than 1048576 bytes"),
    ],
)
async def test_a_body_that_is_no_good_is_refused(api: httpx.AsyncClient, body: bytes, status: int, detail: str):
    for path in ("/sandbox/create", "/sandbox/tool/execute", "/pool/initialize?pool_size=1"):
        answer = await api.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == status
        assert detail in answer.text
    assert (await api.get("/stats")).status_code == 200


async def test_a_body_without_an_announced_size_is_bounded_too(api: httpx.AsyncClient):
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield b" " * 65536

    headers = {"Content-Type": "application/json"}
    answer = await api.post("/sandbox/create", content=endless(), headers=headers)
    assert answer.status_code == 413


async def test_json_must_be_called_json(api: httpx.AsyncClient):
    headers = {"Content-Type": "text/plain"}
    answer = await api.post("/sandbox/create", content=b"{}", headers=headers)
    assert answer.status_code == 415


async def test_an_unknown_field_of_a_call_is_refused(api: httpx.AsyncClient):
    body = {"sandbox_id": "x", "tool_name": "y", "stdin": True}
    answer = await api.post("/sandbox/tool/execute", json=body)
    assert (answer.status_code, "unknown field 'stdin'" in answer.text) == (400, True)


async def test_errors_say_which_they_are_in_a_header(api: httpx.AsyncClient):
    sandbox_id = await create(api)
    body = {"sandbox_id": sandbox_id, "tool_name": "python_executor", "parameters": {"nope": 1}}
    answer = await api.post("/sandbox/tool/execute", json=body)
    named = json.loads(answer.headers["x-enclave-error"])
    assert named["reason"] == "INVALID_REQUEST"
    assert {violation["field"] for violation in named["violations"]} == {"parameters.code", "parameters.nope"}


# -- results -----------------------------------------------------------------------------------------------------


async def test_variables_live_and_an_alias_is_known(api: httpx.AsyncClient):
    sandbox_id = await create(api)
    await execute(api, sandbox_id, "python_executor", code="x = 20")
    result = await execute(api, sandbox_id, "python_executor", code="print(x + 1)")
    assert (result["output"], result["metadata"]["verdict"]) == ("21\n", "EXITED")
    assert (await execute(api, sandbox_id, "bash", command="echo hi"))["tool_name"] == "bash"


async def test_output_beyond_one_answer_of_the_core_is_complete(api: httpx.AsyncClient):
    sandbox_id = await create(api)
    result = await execute(api, sandbox_id, "python_executor", code="print('x' * 3_000_000)")
    assert (len(result["output"]), result["metadata"]["truncated"]) == (3_000_001, False)


async def test_output_without_end_is_cut_and_the_result_says_so(api: httpx.AsyncClient):
    sandbox_id = await create(api)
    result = await execute(api, sandbox_id, "python_executor", code="print('x' * 9_000_000)")
    assert (len(result["output"]), result["metadata"]["truncated"]) == (4 * 2**20, True)
    assert result["status"] == "success"


async def test_a_killed_program_has_the_documented_exit_code(api: httpx.AsyncClient):
    sandbox_id = await create(api)
    result = await execute(api, sandbox_id, "shell_executor", command="kill -9 $$")
    assert "exit code 137" in result["error"]


async def test_many_requests_at_once_have_the_right_answers(api: httpx.AsyncClient):
    ids = [await create(api) for _ in range(2)]
    calls = [execute(api, ids[n % 2], "shell_executor", command=f"echo {n}") for n in range(30)]
    results = await asyncio.gather(*calls)
    assert [result["output"] for result in results] == [f"{n}\n" for n in range(30)]


async def test_callers_of_the_pool_are_isolated_from_each_other(api: httpx.AsyncClient):
    body = {"tools_config": ["python_executor"]}
    answer = await api.post("/pool/initialize", params={"pool_size": 2}, json=body)
    again = await api.post("/pool/initialize", params={"pool_size": 2}, json=body)
    assert answer.json() == again.json()
    codes = [{"code": "x = globals().get('x', 0) + 1; print(x)"}] * 8
    answers = await asyncio.gather(
        *(api.post("/pool/execute", params={"tool_name": "python_executor"}, json=code) for code in codes)
    )
    assert [answer.json()["output"] for answer in answers] == ["1\n"] * 8
    assert {answer.json()["metadata"]["sandbox_id"] for answer in answers} <= set(again.json()["sandbox_ids"])


async def test_a_pool_of_another_size_replaces_the_first(api: httpx.AsyncClient):
    first = (await api.post("/pool/initialize", params={"pool_size": 1})).json()
    second = (await api.post("/pool/initialize", params={"pool_size": 2})).json()
    assert (second["pool_size"], set(first["sandbox_ids"]) & set(second["sandbox_ids"])) == (2, set())
    stats = (await api.get("/stats")).json()
    assert (stats["total_sandboxes"], stats["pool_size"]) == (2, 2)


async def test_a_pool_without_a_free_member_answers_408(running: Running, api: httpx.AsyncClient):
    await api.post("/pool/initialize", params={"pool_size": 1}, json={"tools_config": ["python_executor"]})
    long = {"code": "import time; time.sleep(3600)"}
    call = asyncio.create_task(api.post("/pool/execute", params={"tool_name": "python_executor"}, json=long))
    async with asyncio.timeout(PATIENCE_S):
        while "enclaved_executions_active 1.0" not in (await running.get("/metrics"))[1]:
            pass
    params = {"tool_name": "python_executor", "timeout": 0}
    answer = await api.post("/pool/execute", params=params, json={"code": "1"})
    assert answer.status_code == 408
    assert (await api.get("/sandboxes", params={"status": "busy"})).json()
    call.cancel()
    await asyncio.wait([call])


@pytest.mark.parametrize("size", [0, -1, 101, "x"])
async def test_a_size_of_a_pool_that_makes_no_sense_is_refused(api: httpx.AsyncClient, size: Any):
    assert (await api.post("/pool/initialize", params={"pool_size": size})).status_code == 422


# -- archives ----------------------------------------------------------------------------------------------------


def packed(*members: tarfile.TarInfo | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Packs an archive of members, or of names and contents."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size, info.mtime = len(member[1]), 1.5  # the fraction makes an extended header
                tar.addfile(info, io.BytesIO(member[1]))
    return target.getvalue()


def special(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    """Makes a member that is no file."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, linkname, 0o755
    return info


async def put(api: httpx.AsyncClient, sandbox_id: str, archive: Any, **params: str) -> httpx.Response:
    """Uploads an archive."""
    return await api.post(f"/sandbox/{sandbox_id}/archive", params=params, content=archive)


@pytest.fixture
async def home(api: httpx.AsyncClient) -> tuple[str, str]:
    """A sandbox and its working directory."""
    sandbox_id = await create(api)
    return sandbox_id, (await execute(api, sandbox_id, "shell_executor", command="pwd"))["output"].strip()


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
async def test_an_archive_is_unpacked(api: httpx.AsyncClient, home: tuple[str, str], pack: Any, form: int):
    sandbox_id, here = home
    long = "d" * 60 + "/" + "e" * 38 + "ünïcode"  # some formats cut names after 100 bytes, here within a character
    big = bytes(range(256)) * 4000
    archive = pack(
        packed(("a.txt", b"abc"), ("b/big", big), (long, b"deep"), special("empty/dir", tarfile.DIRTYPE), form=form)
    )
    answer = await put(api, sandbox_id, archive, target_dir=f"{here}/in")
    assert answer.json() == {"ok": True}, answer.text
    command = f"cd in && cat a.txt && wc -c < b/big && cat {long} && ls -d empty/dir && sha256sum < b/big"
    result = await execute(api, sandbox_id, "shell_executor", command=command)
    lines = result["output"].split()
    assert lines[:3] == [f"abc{len(big)}", "deepempty/dir", hashlib.sha256(big).hexdigest()]


async def test_the_execute_bit_survives_and_no_other_right_does(api: httpx.AsyncClient, home: tuple[str, str]):
    sandbox_id, here = home
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for name, mode in (("run", 0o6777), ("read", 0o666)):
            info = tarfile.TarInfo(name)
            info.mode = mode
            tar.addfile(info)
    await put(api, sandbox_id, target.getvalue(), target_dir=here)
    result = await execute(api, sandbox_id, "shell_executor", command="stat -c %a run read")
    assert result["output"] == "755\n644\n"


@pytest.mark.parametrize(
    ("archive", "detail"),
    [
        (packed(("../x", b"")), "leads out of the target directory"),
        (packed(("a/../../x", b"")), "leads out of the target directory"),
        (packed(special("x", tarfile.SYMTYPE, "/etc/passwd")), "is a link that leads out of the archive"),
        (packed(special("x", tarfile.LNKTYPE, "y")), "links to nothing that is a file in the archive"),
        (packed(special("x", tarfile.CHRTYPE)), "is a device, a pipe or another special file"),
        (packed(special("x", tarfile.FIFOTYPE)), "is a device, a pipe or another special file"),
        (packed(("x", b"abc"))[:700], "it ends too early"),
        (b"x" * 2000, "cannot be read"),
        (b"\x1f\x8b" + b"x" * 2000, "cannot be read"),
        (gzip.compress(packed(("x", b"abc")))[:40], "cannot be read"),
        (b"PK\x03\x04", "cannot be read"),
    ],
)
async def test_a_hostile_archive_is_refused(api: httpx.AsyncClient, home: tuple[str, str], archive: bytes, detail: str):
    sandbox_id, here = home
    answer = await put(api, sandbox_id, archive, target_dir=f"{here}/in")
    assert (answer.status_code, detail in answer.json()["detail"]) == (400, True), answer.text


async def test_a_target_outside_the_sandboxs_directories_is_refused(api: httpx.AsyncClient, home: tuple[str, str]):
    answer = await put(api, home[0], packed(("x", b"")), target_dir="/etc")
    assert (answer.status_code, "outside" in answer.text) == (400, True)


async def test_an_archive_for_a_stopped_sandbox_is_refused(api: httpx.AsyncClient, home: tuple[str, str]):
    await api.post(f"/sandbox/{home[0]}/stop")
    answer = await put(api, home[0], packed(("x", b"")), target_dir=home[1])
    assert (answer.status_code, "is not active" in answer.text) == (404, True)


async def test_an_archive_streams_while_it_is_made(api: httpx.AsyncClient, home: tuple[str, str]):
    archive = packed(*((f"f{n}", bytes([n]) * 100_000) for n in range(20)))

    async def trickle() -> AsyncIterator[bytes]:
        for start in range(0, len(archive), 7777):
            yield archive[start : start + 7777]

    assert (await put(api, home[0], trickle(), target_dir=home[1])).json() == {"ok": True}
    result = await execute(api, home[0], "shell_executor", command="cat f* | wc -c")
    assert result["output"] == "2000000\n"
