"""A server of the documented routes, made of dictionaries, on a thread of its own.

It answers as earlier versions did: no more than the documented statuses, bodies and texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tarfile
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

TIME = "2026-11-23T05:07:34.438039"
TOOLS = ("python_executor", "shell_executor", "file_operation")
POOL_EMPTY = "Sandbox pool is empty, call initialize_pool first"


def schema(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]}
    return {"type": "function", "function": {"name": name, "description": f"its {name}", "parameters": parameters}}


@dataclass
class FakeServer:
    """What the fake knows, what it was asked, and what it is told to answer."""

    api_key: str = ""
    sandboxes: dict[str, dict[str, Any]] = field(default_factory=dict)
    pool: list[str] = field(default_factory=list)
    files: dict[tuple[str, str], tuple[bytes, int]] = field(default_factory=dict)
    requests: list[tuple[str, str, Any]] = field(default_factory=list)
    """Every request in the order of arrival: method, path with query, and JSON body or bytes."""
    answers: dict[str, deque[web.Response | None]] = field(default_factory=lambda: defaultdict(deque))
    """What the next calls of a path are answered with; ``None``: the connection ends without an answer."""
    running: threading.Event = field(default_factory=threading.Event)
    """Set when a program that runs until its caller leaves has started."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when that caller has left."""
    url: str = ""

    def asked(self, path: str) -> list[Any]:
        """Returns what was sent to a path."""
        return [body for _, target, body in self.requests if target.partition("?")[0] == path]

    async def answer(self, request: web.Request) -> web.StreamResponse:
        data = await request.content.read()
        body = json.loads(data) if request.content_type == "application/json" else data
        self.requests.append((request.method, request.path_qs, body))
        if self.api_key and request.headers.get("X-API-Key") != self.api_key:
            return refused(401, "Invalid or missing API key")
        if self.answers[request.path]:
            prepared = self.answers[request.path].popleft()
            if prepared is not None:
                return prepared
            assert request.transport is not None
            request.transport.close()
        match [request.method, *request.path.strip("/").split("/")]:
            case ["GET", "health"]:
                count = len(self.sandboxes)
                return found(healthy=True, version="1.0.0", uptime=1.5, active_sandboxes=count, system_info={})
            case ["GET", "stats"]:
                return found(manager_type="local", total_sandboxes=len(self.sandboxes), pool_size=len(self.pool))
            case ["GET", "sandboxes"]:
                return web.json_response(list(self.sandboxes.values()))
            case ["POST", "sandbox", "create"]:
                return found(sandbox_id=self.create(body or {}))
            case ["POST", "sandbox", "tool", "execute"]:
                return await self.execute(body["sandbox_id"], body["tool_name"], body["parameters"])
            case ["POST", "pool", "initialize"]:
                size = int(request.query["pool_size"])
                self.pool = self.pool or [self.create(body) for _ in range(size)]
                return found(message="Pool initialized successfully", pool_size=size, sandbox_ids=self.pool)
            case ["POST", "pool", "execute"]:
                if not self.pool:
                    return refused(400, POOL_EMPTY)
                return await self.execute(self.pool[0], request.query["tool_name"], body)
            case ["POST", "sandbox", sandbox_id, "archive"]:
                return self.unpack(sandbox_id, request.query["target_dir"], data)
            case [method, "sandbox", sandbox_id, *rest]:
                return self.sandbox(method, sandbox_id, rest)
        return refused(404, "Not Found")

    def create(self, config: dict[str, Any]) -> str:
        sandbox_id = f"fake{len(self.sandboxes)}"
        tools = {name: schema(name) for name in (TOOLS if config["tools_config"] is None else config["tools_config"])}
        shown = {"memory_limit": "4g", **config}
        record = {"id": sandbox_id, "status": "running", "type": "docker", "config": shown, "metadata": {}}
        times = {"created_at": TIME, "updated_at": TIME}
        self.sandboxes[sandbox_id] = {**record, **times, "available_tools": tools}
        return sandbox_id

    def sandbox(self, method: str, sandbox_id: str, rest: list[str]) -> web.Response:
        record = self.sandboxes.get(sandbox_id)
        if record is None:
            return refused(404, f"Sandbox {sandbox_id} not found" if rest == ["tools"] else "Sandbox not found")
        match [method, *rest]:
            case ["GET"]:
                return web.json_response(record)
            case ["GET", "tools"]:
                return web.json_response(record["available_tools"])
            case ["POST", "stop"]:
                record["status"] = "stopped"
                return found(message="Sandbox stopped successfully")
            case ["DELETE"]:
                del self.sandboxes[sandbox_id]
                return found(message="Sandbox deleted successfully")
        return refused(405, "Method Not Allowed")

    async def execute(self, sandbox_id: str, tool: str, parameters: dict[str, Any]) -> web.Response:
        record = self.sandboxes.get(sandbox_id)
        if record is None:
            return refused(404, f"Sandbox {sandbox_id} not found")
        if record["status"] != "running":
            return refused(404, f"Sandbox {sandbox_id} is not active (status: SandboxStatus.STOPPED)")
        if tool not in {*record["available_tools"], "bash", "command"}:
            return refused(404, f"Tool {tool} is not available")
        text = parameters.get("code") or parameters.get("command")
        if text == "for ever":
            self.running.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()
        result = {"status": "success", "output": text, "error": None} if text else {"status": "error", "output": ""}
        return found(execution_time=None, timestamp=TIME, tool_name=tool, metadata={}, **result)

    def unpack(self, sandbox_id: str, target: str, data: bytes) -> web.Response:
        if sandbox_id not in self.sandboxes:
            return refused(404, f"Sandbox {sandbox_id} not found")
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            for member in (found for found in archive if not found.isdir()):
                content = archive.extractfile(member)
                assert content is not None
                self.files[sandbox_id, f"{target}/{member.name}"] = (content.read(), member.mode)
        return found(ok=True)


def found(**body: Any) -> web.Response:
    return web.json_response(body)


def refused(status: int, detail: Any, **headers: str) -> web.Response:
    return web.json_response({"detail": detail}, status=status, headers=headers)


@contextlib.contextmanager
def served(server: FakeServer, unix: Path | None = None, port: int = 0) -> Iterator[FakeServer]:
    """Serves on a thread with an event loop of its own; ``server.url`` says where. ``port`` 0: any."""
    ready = threading.Event()
    stop: list[Callable[[], None]] = []

    async def main() -> None:
        loop, ending = asyncio.get_running_loop(), asyncio.Event()
        stop.append(lambda: loop.call_soon_threadsafe(ending.set))
        runner = web.ServerRunner(web.Server(server.answer, handler_cancellation=True), shutdown_timeout=0)
        await runner.setup()
        if unix is None:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            server.url = "http://{}:{}".format(*runner.addresses[0])
        else:
            await web.UnixSite(runner, str(unix)).start()
            server.url = f"unix:{unix}"
        ready.set()
        await ending.wait()
        # Accepting what clients began takes three rounds of the loop: asyncio (3.11) loses a connection, and never
        # closes it, if its listener is closed in between.
        for _ in range(3):
            await asyncio.sleep(0)
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(20)
    try:
        yield server
    finally:
        stop[0]()
        thread.join(20)
