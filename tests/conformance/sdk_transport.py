"""What every transport of the SDK promises. Subclass `TransportContract` and give it a ``transport`` fixture.

The daemon behind it is real, and so is the guest; programs run.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any, ClassVar

import pytest
from ms_enclave import errors
from ms_enclave._transports.base import SandboxChange, SandboxPlan, ToolCall, Transport
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    ExecutionStatus,
    Finished,
    Output,
    SandboxStatus,
    Started,
    ToolResult,
    Verdict,
)


def plan(sandbox_id: str, tools: Any = None, labels: Any = None, **fields: Any) -> SandboxPlan:
    return SandboxPlan(sandbox_id, DockerSandboxConfig(**fields), tools, labels or {})


async def python(transport: Transport, code: str, **parameters: Any) -> ToolResult:
    return await transport.run(ToolCall("box", "python_executor", {"code": code, **parameters}))


class TransportContract:
    """The promises, one test each."""

    cannot: ClassVar[frozenset[str]] = frozenset()
    """What the wire has no words for: "labels", "start" (of a stopped sandbox), "stream", "read" (of a file), "tools
    of the daemon", "delete a pool". The transport says so with `NotServed`."""

    @pytest.fixture
    async def box(self, transport: Transport) -> AsyncIterator[str]:
        """A running sandbox with the id "box"."""
        await transport.create_sandbox(plan("box"))
        yield "box"
        with contextlib.suppress(errors.SandboxNotFound):
            await transport.delete_sandbox("box")

    @contextlib.contextmanager
    def unless_it_cannot(self, what: str) -> Iterator[None]:
        """Checks the block, or else that it is refused as something that the wire has no words for."""
        if what not in self.cannot:
            yield
            return
        with pytest.raises(errors.NotServed, match="HTTP"):
            yield

    async def test_a_daemon_says_how_it_is(self, transport: Transport) -> None:
        health = await transport.health()
        assert health.healthy
        assert health.active_sandboxes == 0
        assert transport.address

    async def test_a_sandbox_lives_its_life(self, transport: Transport) -> None:
        made = await transport.create_sandbox(plan("box", memory_limit="256m", labels={"who": "me"}))
        assert (made.id, made.status, made.config["memory_limit"]) == ("box", SandboxStatus.RUNNING, "256m")
        assert [info.id for info in await transport.list_sandboxes({})] == ["box"]
        with self.unless_it_cannot("labels"):
            assert [info.id for info in await transport.list_sandboxes({"who": "me"})] == ["box"]
            assert await transport.list_sandboxes({"who": "else"}) == []
        assert (await transport.start_sandbox("box")).status is SandboxStatus.RUNNING
        with self.unless_it_cannot("pause"):
            paused = await transport.lifecycle.pause("box")
            assert (paused.status, paused.metadata["paused"]) == (SandboxStatus.IDLE, True)
            assert (await transport.lifecycle.resume("box")).status is SandboxStatus.RUNNING
        with self.unless_it_cannot("update"):
            changed = await transport.lifecycle.update("box", SandboxChange(labels={"who": "else"}, cpu_limit=0.5))
            assert (changed.metadata["labels"], changed.config["cpu_limit"]) == ({"who": "else"}, 0.5)
        assert (await transport.stop_sandbox("box")).status is SandboxStatus.STOPPED
        assert (await transport.stop_sandbox("box")).status is SandboxStatus.STOPPED
        with pytest.raises(errors.WrongState):
            await python(transport, "1")
        with self.unless_it_cannot("start"):
            assert (await transport.start_sandbox("box")).status is SandboxStatus.RUNNING
            assert (await transport.get_sandbox("box")).status is SandboxStatus.RUNNING
        await transport.delete_sandbox("box")
        with pytest.raises(errors.SandboxNotFound):
            await transport.get_sandbox("box")

    async def test_what_policy_refuses_is_refused_with_its_rule(self, transport: Transport) -> None:
        for fields, rule in (
            ({"privileged": True}, "privileged"),
            ({"volumes": {"/etc": {"bind": "/x"}}}, "volumes"),
            ({"network": "host"}, "network"),
            ({"memory_limit": "999g"}, "resources"),
        ):
            with pytest.raises(PermissionError) as caught:
                await transport.create_sandbox(plan("box", **fields))
            assert isinstance(caught.value, errors.PolicyDenied)
            assert caught.value.metadata["rule"] == rule

    async def test_what_is_malformed_is_refused_with_its_field(self, transport: Transport) -> None:
        for wanted, field in ((plan("Not An Id"), "sandbox_id"), (plan("box", env_vars={"1=": "x"}), "env_vars")):
            with pytest.raises(ValueError, match=field) as caught:
                await transport.create_sandbox(wanted)
            assert isinstance(caught.value, errors.InvalidRequest)
            assert any(field in violation.field for violation in caught.value.violations)

    async def test_an_unknown_image_is_named(self, transport: Transport) -> None:
        with pytest.raises(errors.ImageNotFound, match="no-such-image"):
            await transport.create_sandbox(plan("box", image="no-such-image:1"))

    async def test_an_id_is_taken_once(self, transport: Transport, box: str) -> None:
        with pytest.raises(errors.SandboxExists):
            await transport.create_sandbox(plan(box))

    async def test_nobody_s_sandbox_is_not_found(self, transport: Transport) -> None:
        for use in (
            transport.start_sandbox("nope"),
            transport.stop_sandbox("nope"),
            transport.delete_sandbox("nope"),
            transport.list_tools("nope"),
            transport.run(ToolCall("nope", "python_executor", {"code": "1"})),
        ):
            with pytest.raises(ValueError, match="nope") as caught:
                await use
            assert isinstance(caught.value, errors.SandboxNotFound)

    async def test_tools_are_those_that_were_selected(self, transport: Transport) -> None:
        with self.unless_it_cannot("tools of the daemon"):
            assert {tool.name for tool in await transport.list_tools()} >= {"python_executor", "shell_executor"}
        await transport.create_sandbox(plan("box", {"bash": {"timeout": 5}}))
        (tool,) = await transport.list_tools("box")
        assert (tool.name, tool.aliases) == ("shell_executor", ("bash",))
        assert tool.schema["function"]["name"] == "shell_executor"
        with pytest.raises(errors.ToolNotFound, match="python_executor"):
            await python(transport, "1")
        await transport.delete_sandbox("box")

    async def test_a_program_succeeds_fails_and_keeps_its_variables(self, transport: Transport, box: str) -> None:
        assert (await python(transport, "x = 40")).success
        found = await python(transport, "print(x + 2)")
        assert (found.output, found.error, found.metadata["verdict"]) == ("42\n", None, Verdict.EXITED)
        found = await python(transport, "1/0")
        assert found.status is ExecutionStatus.ERROR
        assert "ZeroDivisionError: division by zero" in (found.error or "")
        found = await transport.run(ToolCall(box, "shell_executor", {"command": "echo no >&2; exit 3"}))
        assert found.error == "no\nCommand failed with exit code 3"

    async def test_a_program_times_out_with_the_documented_text(self, transport: Transport, box: str) -> None:
        found = await python(transport, "import time; time.sleep(60)", timeout=0.5)
        assert (found.status, found.error) == (ExecutionStatus.TIMEOUT, "Command timed out after 0.5 seconds")

    async def test_nonsense_is_a_failed_result_and_a_wrong_parameter_an_error(
        self, transport: Transport, box: str
    ) -> None:
        assert (await python(transport, " ")).error == "No code provided"
        with pytest.raises(ValueError, match=r"parameters\.nope"):
            await python(transport, "1", nope=1)

    async def test_output_of_any_length_arrives_whole(self, transport: Transport, box: str) -> None:
        found = await python(transport, "import sys; print('ü' * 2_000_000); print('e' * 3_000_000, file=sys.stderr)")
        assert found.output == "ü" * 2_000_000 + "\n"
        assert found.metadata["stderr"] == "e" * 3_000_000 + "\n"
        assert not found.metadata["truncated"]

    async def test_cancelling_the_caller_ends_the_program(self, transport: Transport, box: str) -> None:
        """The next call to the same interpreter has to wait for the one before, so it shows that that ended."""
        begun = "import pathlib; pathlib.Path('begun').touch()"
        task = asyncio.create_task(python(transport, f"{begun}\nwhile True: pass"))
        wait = "while [ ! -e begun ]; do sleep 0.01; done"
        assert (await transport.run(ToolCall(box, "shell_executor", {"command": wait}))).success
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await python(transport, "print('free')", timeout=20)).output == "free\n"

    async def test_what_happens_can_be_watched(self, transport: Transport, box: str) -> None:
        call = ToolCall(box, "shell_executor", {"command": "echo out; echo err >&2"})
        with self.unless_it_cannot("stream"):
            seen = [event async for event in transport.stream(call)]
            assert isinstance(seen[0], Started)
            assert isinstance(seen[-1], Finished)
            assert seen[-1].exit_code == 0
            written = {event.channel.value: event.data for event in seen if isinstance(event, Output)}
            assert written == {"stdout": b"out\n", "stderr": b"err\n"}

    async def test_leaving_a_stream_ends_the_program(self, transport: Transport, box: str) -> None:
        call = ToolCall(box, "python_executor", {"code": "print('begun', flush=True)\nwhile True: pass"})
        with self.unless_it_cannot("stream"):
            async with contextlib.aclosing(transport.stream(call)) as events:
                async for event in events:
                    if isinstance(event, Output):
                        break
        assert (await python(transport, "print('free')", timeout=20)).output == "free\n"

    async def test_files_go_in_and_come_out(self, transport: Transport, box: str) -> None:
        data = bytes(range(256)) * 4096

        async def content() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 100_000):
                yield data[start : start + 100_000]

        assert await transport.write_file(box, "d/e/f.bin", content, mode=0o600) == len(data)
        with self.unless_it_cannot("read"):
            assert b"".join([piece async for piece in transport.read_file(box, "d/e/f.bin")]) == data
        script = "import hashlib; print(hashlib.sha256(open('d/e/f.bin', 'rb').read()).hexdigest())"
        assert (await python(transport, script)).output == hashlib.sha256(data).hexdigest() + "\n"
        found = await python(transport, "import os; print(oct(os.stat('d/e/f.bin').st_mode & 0o777))")
        assert found.output == "0o600\n"
        if "read" not in self.cannot:
            with pytest.raises(FileNotFoundError):
                await anext(transport.read_file(box, "nope"))
            with pytest.raises(OSError, match="d"):
                await anext(transport.read_file(box, "d"))
        with pytest.raises(OSError, match="d"):
            await transport.write_file(box, "d", content)
        with pytest.raises(ValueError, match="path"):
            await transport.write_file(box, "/etc/passwd", content)

    async def test_a_pool_serves_calls_each_alone_in_a_member_that_is_as_new(self, transport: Transport) -> None:
        with pytest.raises(errors.PoolNotFound, match="initialize"):
            await transport.run_in_pool("pool", ToolCall("", "python_executor", {"code": "1"}))
        wanted = plan("", {"python_executor": {}, "shell_executor": {}}, memory_limit="256m")
        ids = await transport.initialize_pool("pool", 1, wanted)
        assert [info.id for info in await transport.list_sandboxes({})] == ids
        assert await transport.initialize_pool("pool", 1, wanted) == ids
        code = "import os\nprint('x' in globals(), os.path.exists('left'))\nx = 1\nos.mkdir('left')"
        for _ in range(2):
            found = await transport.run_in_pool("pool", ToolCall("", "python_executor", {"code": code}))
            assert found.output == "False False\n"
        assert (await transport.run_in_pool("pool", ToolCall("", "python_executor", {"code": ""}))).error == (
            "No code provided"
        )
        begun = asyncio.create_task(
            transport.run_in_pool("pool", ToolCall("", "shell_executor", {"command": "touch begun; sleep 60"}))
        )
        look = ToolCall(ids[0], "shell_executor", {"command": "while [ ! -e begun ]; do sleep 0.01; done"})
        await transport.run(look)
        with pytest.raises(errors.PoolBusy):
            await transport.run_in_pool("pool", ToolCall("", "python_executor", {"code": "1"}), wait_timeout_s=0)
        begun.cancel()
        with pytest.raises(asyncio.CancelledError):
            await begun
        call = ToolCall("", "shell_executor", {"command": "ls"})
        assert (await transport.run_in_pool("pool", call, wait_timeout_s=30)).output == ""
        with self.unless_it_cannot("delete a pool"):
            await transport.delete_pool("pool")
            assert await transport.list_sandboxes({}) == []
            with pytest.raises(errors.PoolNotFound):
                await transport.delete_pool("pool")
