"""Replays the recorded exchanges, in their order, and says what is not as recorded."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import httpx

EXCHANGES = json.loads((Path(__file__).parent / "exchanges.json").read_text())["exchanges"]

VARIES = frozenset(
    {"uptime", "version", "created_at", "updated_at", "timestamp", "execution_time", "image", "description"}
)
"""Values of which only the type is compared."""

MAY_BE_MORE = frozenset({"metadata", "resource_limits", "properties"})
"""Objects in which ours says more."""

LOWERED = {"memory_limit": "512m", "cpu_limit": 1.0, "network": "none", "network_enabled": False}
"""What policy gives to one who asks for nothing."""


def archive() -> bytes:
    """Makes an archive with one file."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        member = tarfile.TarInfo("a/b.txt")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    return packed.getvalue()


class Replay:
    """Sends recorded requests with the ids of this run, and compares the answers."""

    def __init__(self, api: httpx.AsyncClient) -> None:
        self._api = api
        self.ids: dict[str, str] = {}
        self._paths: dict[str, str] = {}

    async def send(self, exchange: dict[str, Any]) -> httpx.Response:
        """Sends one request."""
        request = self._renamed(exchange["request"])
        content = {"tar archive": archive(), "empty": b"", None: None}[request.get("body")]
        arguments = {"json": request["json"]} if "json" in request else {"content": content}
        return await self._api.request(request["method"], request["path"], **arguments)

    def learn(self, recorded: Any, got: Any) -> None:
        """Remembers which id of this run stands for which recorded one."""
        pairs = [(recorded.get("sandbox_id"), got.get("sandbox_id"))]
        pairs += zip(recorded.get("sandbox_ids", ()), got.get("sandbox_ids", ()), strict=True)
        self.ids.update({old: new for old, new in pairs if old})

    async def find_working_dir(self) -> None:
        """Finds the working directory, which is another one where there is no container around a sandbox."""
        call = {"tool_name": "shell_executor", "parameters": {"command": "pwd"}}
        body = {"sandbox_id": next(iter(self.ids.values())), **call}
        answer = await self._api.post("/sandbox/tool/execute", json=body)
        here = answer.json()["output"].strip()
        self._paths = {
            **{f"/sandbox/{name}": f"{here}/{name}" for name in ("a.txt", "b.txt", "in")},
            '"file_path": "/sandbox"': f'"file_path": "{here}"',
        }

    def _renamed(self, value: Any) -> Any:
        text = json.dumps(value)
        for old, new in self.ids.items():
            text = text.replace(f'"{old}"', f'"{new}"').replace(f"/{old}", f"/{new}").replace(f" {old} ", f" {new} ")
        for old, new in self._paths.items():
            text = text.replace(old, new)
        return json.loads(text)

    def expected(self, exchange: dict[str, Any]) -> Any:
        """The recorded answer, with the ids of this run."""
        return self._renamed(exchange["response"]["json"])


def differences(recorded: Any, got: Any, where: str = "") -> list[str]:
    """Finds where an answer is not as recorded."""
    name = where.rpartition(".")[2]
    if name in LOWERED:
        return [] if got in (recorded, LOWERED[name]) else [f"{where}: {got!r}"]
    if name == "container_id":
        return [] if got is None or re.fullmatch("[0-9a-f]{64}", got) else [f"{where}: {got!r}"]
    if name in VARIES:
        return [] if recorded is None or isinstance(got, type(recorded)) else [f"{where}: {got!r}"]
    if isinstance(recorded, dict) and isinstance(got, dict):
        found = [f"{where}: keys {sorted(recorded.keys() ^ got.keys())}"]
        if recorded.keys() == got.keys() or (name in MAY_BE_MORE and recorded.keys() <= got.keys()):
            found = []
        return found + [
            line
            for key in recorded.keys() & got.keys()
            for line in differences(recorded[key], got[key], f"{where}.{key}")
        ]
    if isinstance(recorded, list) and isinstance(got, list) and len(recorded) == len(got):
        return [
            line
            for index, (old, new) in enumerate(zip(recorded, got, strict=True))
            for line in differences(old, new, f"{where}.{index}")
        ]
    return [] if recorded == got else [f"{where}: recorded {recorded!r}, got {got!r}"]


OURS = {
    "create with a wrong memory limit": re.compile(
        r"Failed to create sandbox: 1 validation error for DockerSandboxConfig\nmemory_limit\n"
        r"  Value error, Invalid memory limit format \[type=value_error, input_value='5 apples', input_type=str\].*",
        re.DOTALL,
    ),
    "wrong parameter": re.compile(r".*parameters\.nope: is no parameter of python_executor.*"),
    "execute after stop": re.compile(
        r"Sandbox \w+ is not active \(status: SandboxStatus\.STOPPED\); start it again with StartSandbox .*"
    ),
}
"""The details of refusals that are not word for word as recorded."""

RESULTS = {
    "python raises": {
        "status": "error",
        "error": re.compile(r"Traceback .*ZeroDivisionError: division by zero\n", re.DOTALL),
    },
    "shell fails with stderr": {"error": re.compile(r"no\nCommand failed with exit code 3")},
    "file read missing": {"error": re.compile(r".*No such file or directory.*", re.DOTALL)},
    "file list": {"output": re.compile(r"total .* a\.txt\n", re.DOTALL)},
}
"""Fields of results that are not word for word as recorded."""


async def replayed(api: httpx.AsyncClient) -> list[str]:
    """Replays the whole recording and returns what is not as recorded."""
    replay = Replay(api)
    wrong = []
    for exchange in EXCHANGES:
        name, recorded = exchange["name"], exchange["response"]
        answer = await replay.send(exchange)
        while name == "stats with a pool" and "busy" in answer.text:  # the member is being emptied
            answer = await replay.send(exchange)
        got = answer.json()
        status = 400 if name == "wrong parameter" else recorded["status"]
        if answer.status_code != status:
            wrong.append(f"{name}: status {answer.status_code}, {answer.text[:300]}")
            continue
        if isinstance(got, dict):
            replay.learn(recorded["json"], got)
        if name == "create":
            await replay.find_working_dir()
        expected = replay.expected(exchange)
        if name in OURS:
            if not OURS[name].fullmatch(got["detail"]):
                wrong.append(f"{name}: {got['detail']}")
            continue
        for field, pattern in RESULTS.get(name, {}).items():
            if not re.fullmatch(pattern, got[field]):
                wrong.append(f"{name}.{field}: {got[field]!r}")
            expected[field] = got[field]
        wrong += [f"{name}{line}" for line in differences(expected, got)]
    return wrong
