"""Sandbox objects: their life, their tools, their files, from any event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from ms_enclave import errors
from ms_enclave.sandbox.boxes import DockerNotebookSandbox, DockerSandbox, Sandbox, SandboxFactory, register_sandbox
from ms_enclave.sandbox.model import (
    DockerSandboxConfig,
    ExecutionStatus,
    Finished,
    Output,
    SandboxConfig,
    SandboxStatus,
    SandboxType,
    ToolResult,
)
from ms_enclave.sandbox.tools import PythonExecutor, Tool, ToolFactory, register_tool
from ms_enclave.v1 import execution_service_pb2 as execution_pb
from ms_enclave.v1 import sandbox_service_pb2 as sandbox_pb
from ms_enclave.v1 import tool_service_pb2 as tool_pb
from pydantic import ValidationError

from tests.unit.sdk.fake_daemon import FakeDaemon, Refusal, ended, exited, result


def make(config: Any = None, sandbox_id: str | None = None) -> DockerSandbox:
    sandbox = SandboxFactory.create_sandbox(SandboxType.DOCKER, config, sandbox_id)
    assert isinstance(sandbox, DockerSandbox)
    return sandbox


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries that forget what a test registers."""
    monkeypatch.setattr(ToolFactory, "_tools", dict(ToolFactory._tools))
    monkeypatch.setattr(SandboxFactory, "_classes", dict(SandboxFactory._classes))


# -- the factory -------------------------------------------------------------------------------------------------


def test_a_configuration_is_a_model_a_dictionary_or_nothing() -> None:
    assert make().config == DockerSandboxConfig()
    assert make({"memory_limit": "1g"}).config.memory_limit == "1g"
    config = DockerSandboxConfig(memory_limit="1g")
    assert make(config).config is config
    assert make(SandboxConfig(timeout=5)).config == DockerSandboxConfig(timeout=5)
    assert make(SandboxConfig(timeout=5)).config.model_fields_set == {"timeout"}


def test_a_type_may_be_written_as_text() -> None:
    assert SandboxFactory.create_sandbox("docker").sandbox_type is SandboxType.DOCKER


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("nope", "'nope' is none of 'docker'"),
        (SandboxType.DUMMY, "Sandbox type dummy is not registered; available: docker"),
        (SandboxType.VOLCENGINE, "Sandbox type volcengine is not registered; available: docker"),
    ],
)
def test_a_type_that_cannot_be_made_is_refused(kind: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SandboxFactory.create_sandbox(kind)


def test_notebooks_come_later_and_say_so() -> None:
    with pytest.raises(NotImplementedError, match="come with a later version"):
        SandboxFactory.create_sandbox(SandboxType.DOCKER_NOTEBOOK)
    with pytest.raises(errors.NotServed):
        DockerNotebookSandbox()
    assert SandboxFactory.get_available_types() == [SandboxType.DOCKER]


def test_a_malformed_configuration_is_refused_at_once() -> None:
    with pytest.raises(ValidationError, match="Invalid memory limit format"):
        make({"memory_limit": "5 apples"})
    with pytest.raises(ValueError, match="must be a DockerSandboxConfig or a dictionary, not str"):
        make("docker")


def test_ids_are_made_up_and_different() -> None:
    first, second = make(), make()
    assert first.id != second.id
    assert make(sandbox_id="mine").id == "mine"


async def test_a_kind_of_ones_own_takes_part(registry: None) -> None:
    @register_sandbox(SandboxType.DUMMY)
    class Dummy(Sandbox):
        @property
        def sandbox_type(self) -> SandboxType:
            return SandboxType.DUMMY

        async def start(self) -> None:
            await self.initialize_tools()
            self.update_status(SandboxStatus.RUNNING)

        async def stop(self) -> None:
            self.update_status(SandboxStatus.STOPPED)

        async def cleanup(self) -> None: ...

        async def get_execution_context(self) -> None: ...

    register_tool("hello")(Hello)
    async with SandboxFactory.create_sandbox(SandboxType.DUMMY, {"tools_config": ["hello"]}) as sandbox:
        assert (await sandbox.execute_tool("hello", {"name": "you"})).output == {"message": "Hello, you!"}
        for use in (sandbox.execute_command("ls"), sandbox.put_file("a", "b"), sandbox.read_file("a")):
            with pytest.raises(NotImplementedError, match="sandboxes of type dummy"):
                await use
        with pytest.raises(ValueError, match="run no tool of a daemon"):
            await sandbox.run_tool("python_executor", {})
    assert sandbox.status is SandboxStatus.STOPPED


# -- life --------------------------------------------------------------------------------------------------------


async def test_async_with_starts_and_removes(daemon: FakeDaemon) -> None:
    async with make() as sandbox:
        assert sandbox.status is SandboxStatus.RUNNING
        assert list(daemon.sandboxes) == [sandbox.id]
    assert sandbox.status is SandboxStatus.STOPPED
    assert daemon.sandboxes == {}


async def test_async_with_keeps_what_should_be_kept(daemon: FakeDaemon) -> None:
    async with make(DockerSandboxConfig(remove_on_exit=False)) as sandbox:
        pass
    assert daemon.sandboxes[sandbox.id].state == sandbox_pb.Sandbox.STATE_STOPPED
    await sandbox.start()
    assert sandbox.status is SandboxStatus.RUNNING
    await sandbox.cleanup()
    assert daemon.sandboxes == {}


async def test_everything_can_be_done_twice(daemon: FakeDaemon) -> None:
    sandbox = make()
    await sandbox.stop()
    await sandbox.cleanup()
    for _ in range(2):
        await sandbox.start()
        await sandbox.start()
        await sandbox.stop()
        await sandbox.stop()
        await sandbox.cleanup()
        await sandbox.cleanup()
    assert daemon.sandboxes == {}


async def test_a_stopped_sandbox_can_be_started_again(daemon: FakeDaemon) -> None:
    async with make() as sandbox:
        await sandbox.stop()
        assert sandbox.status is SandboxStatus.STOPPED
        with pytest.raises(errors.WrongState, match=r"not active \(status: SandboxStatus.STOPPED\); call start\(\)"):
            await sandbox.execute_tool("python_executor", {"code": "1"})
        await sandbox.start()
        assert (await sandbox.execute_tool("python_executor", {"code": "1"})).success


async def test_a_sandbox_that_is_gone_is_gone_quietly(daemon: FakeDaemon) -> None:
    sandbox = make()
    await sandbox.start()
    daemon.sandboxes.clear()
    await sandbox.stop()
    await sandbox.cleanup()
    with pytest.raises(errors.SandboxNotFound):
        await sandbox.refresh()


async def test_a_sandbox_that_cannot_be_made_says_why(daemon: FakeDaemon) -> None:
    refusal = Refusal(grpc.StatusCode.NOT_FOUND, "IMAGE_NOT_FOUND", "image 'nope' not found: build it")
    daemon.refusals["CreateSandbox"].append(refusal)
    sandbox = make(DockerSandboxConfig(image="nope"))
    with pytest.raises(RuntimeError, match="image 'nope' not found: build it"):
        await sandbox.start()
    assert sandbox.status is SandboxStatus.ERROR
    assert sandbox.metadata["error"] == "image 'nope' not found: build it"
    await sandbox.start()
    assert sandbox.status is SandboxStatus.RUNNING
    assert "error" not in sandbox.metadata


async def test_a_sandbox_whose_tools_cannot_be_listed_is_removed(daemon: FakeDaemon) -> None:
    daemon.refusals["ListTools"].append(Refusal(grpc.StatusCode.INTERNAL, "INTERNAL", "log_id 1"))
    with pytest.raises(errors.InternalError):
        await make().start()
    assert daemon.sandboxes == {}


def test_a_sandbox_may_live_in_three_event_loops(daemon: FakeDaemon) -> None:
    sandbox = make()
    asyncio.run(sandbox.start())
    assert asyncio.run(sandbox.execute_tool("python_executor", {"code": "1"})).success
    asyncio.run(sandbox.cleanup())
    assert daemon.sandboxes == {}


# -- what it shows -----------------------------------------------------------------------------------------------


async def test_the_info_shows_what_the_sandbox_really_has(daemon: FakeDaemon) -> None:
    async with make() as sandbox:
        info = sandbox.get_info()
    assert (info.type, info.status) == ("docker", "running")
    assert info.config["memory_limit"] == "512m"
    assert info.config["network_enabled"] is False
    assert info.metadata["adjustments"][0]["rule"] == "memory"
    assert list(info.available_tools) == ["file_operation", "python_executor", "shell_executor"]
    assert info.created_at.tzinfo is None


async def test_the_execution_context_says_where_it_is(daemon: FakeDaemon, tmp_path: Path) -> None:
    async with make(sandbox_id="box") as sandbox:
        context = await sandbox.get_execution_context()
    assert (context.address, context.sandbox_id) == (f"unix:{tmp_path / 'd.sock'}", "box")


# -- tools -------------------------------------------------------------------------------------------------------


class Hello(Tool):
    """A tool that needs no sandbox."""

    async def execute(self, sandbox: Sandbox, /, **parameters: Any) -> dict[str, Any]:
        return {"message": f"Hello, {parameters.get('name', 'world')}!"}


class Shout(Tool):
    """A tool that works in the sandbox."""

    async def execute(self, sandbox: Sandbox, /, **parameters: Any) -> ToolResult:
        found = await sandbox.execute_command(parameters["word"], timeout=5)
        return ToolResult(tool_name=self.name, status=found.status, output=(found.stdout or "").upper())


async def test_only_the_tools_that_were_named_are_enabled(daemon: FakeDaemon) -> None:
    async with make(DockerSandboxConfig(tools_config=["python_executor"])) as sandbox:
        assert sandbox.list_tools() == ["python_executor"]
        for name in ("shell_executor", "nope"):
            with pytest.raises(ValueError, match=f"Tool {name} is not available.*available: python_executor"):
                await sandbox.execute_tool(name, {})


async def test_an_empty_selection_enables_none(daemon: FakeDaemon) -> None:
    async with make(DockerSandboxConfig(tools_config={})) as sandbox:
        assert sandbox.get_available_tools() == {}
        with pytest.raises(errors.ToolNotFound, match="available: none"):
            await sandbox.execute_tool("python_executor", {"code": "1"})
        assert (await sandbox.execute_command("true")).status is ExecutionStatus.SUCCESS


async def test_an_alias_is_enabled_with_its_tool(daemon: FakeDaemon) -> None:
    for config in (["bash"], ["shell_executor"]):
        async with make(DockerSandboxConfig(tools_config=config)) as sandbox:
            assert sandbox.list_tools() == ["shell_executor"]
            assert (await sandbox.execute_tool("bash", {"command": "x"})).tool_name == "bash"
            assert (await sandbox.execute_tool("shell_executor", {"command": "x"})).tool_name == "shell_executor"


async def test_schemas_are_those_of_the_daemon(daemon: FakeDaemon) -> None:
    async with make() as sandbox:
        schema = sandbox.get_available_tools()["python_executor"]
        assert schema["function"]["description"] == "the daemon's python_executor"
        assert isinstance(sandbox.get_tool("python_executor"), PythonExecutor)
        assert sandbox.get_tool("nope") is None


async def test_options_of_tools_are_sent(daemon: FakeDaemon) -> None:
    tools = {"python_executor": {"timeout": 5}, "shell_executor": {"enabled": False}}
    async with make(DockerSandboxConfig(tools_config=tools)):
        (request,) = daemon.asked(sandbox_pb.CreateSandboxRequest)
    assert [(t.name, t.options_json) for t in request.spec.tools.tools] == [("python_executor", '{"timeout":5}')]


async def test_parameters_are_a_dictionary(daemon: FakeDaemon) -> None:
    async with make() as sandbox:
        for wrong in (["code"], "code", {1: 2}):
            with pytest.raises(ValueError, match="must be a dictionary"):
                await sandbox.execute_tool("python_executor", wrong)


async def test_a_parameter_may_have_any_name(daemon: FakeDaemon) -> None:
    async with make() as sandbox:
        await sandbox.execute_tool("python_executor", {"code": "1", "self": 1, "sandbox": 2, "name": 3})
    (request,) = daemon.asked(execution_pb.RunRequest)
    assert request.spec.parameters_json == '{"code":"1","self":1,"sandbox":2,"name":3}'


async def test_a_tool_of_ones_own_runs_in_this_process(daemon: FakeDaemon) -> None:
    daemon.programs["hi"] = result(b"hi\n")
    async with make(DockerSandboxConfig(tools_config=[])) as sandbox:
        sandbox.add_tool(Hello(name="hello", description="Says hello", parameters={"type": "object"}))
        sandbox.add_tool(Shout(name="shout"))
        assert sandbox.get_available_tools()["hello"] == {
            "type": "function",
            "function": {"name": "hello", "description": "Says hello", "parameters": {"type": "object"}},
        }
        assert (await sandbox.execute_tool("hello")).output == {"message": "Hello, world!"}
        assert (await sandbox.execute_tool("shout", {"word": "hi"})).output == "HI\n"


async def test_a_registered_tool_is_enabled_by_its_name(daemon: FakeDaemon, registry: None) -> None:
    register_tool("hello")(Hello)
    async with make(DockerSandboxConfig(tools_config={"hello": {}, "python_executor": {}})) as sandbox:
        assert sorted(sandbox.list_tools()) == ["hello", "python_executor"]
        assert (await sandbox.execute_tool("hello", {"name": "you"})).tool_name == "hello"
    (request,) = daemon.asked(sandbox_pb.CreateSandboxRequest)
    assert [tool.name for tool in request.spec.tools.tools] == ["python_executor"]


async def test_tools_of_the_daemon_can_be_added_before_the_start(daemon: FakeDaemon) -> None:
    sandbox = make(DockerSandboxConfig(tools_config=[]))
    sandbox.add_tool(ToolFactory.create_tool("python_executor", timeout=5))
    async with sandbox:
        assert (await sandbox.execute_tool("python_executor", {"code": "1"})).success
        with pytest.raises(ValueError, match=r"shell_executor runs in the sandbox.*name it in tools_config"):
            sandbox.add_tool(ToolFactory.create_tool("shell_executor"))
    (request,) = daemon.asked(execution_pb.RunRequest)
    assert request.spec.parameters_json == '{"code":"1","timeout":5}'


async def test_tools_that_nobody_named_can_still_be_added(daemon: FakeDaemon) -> None:
    """Programs written when a sandbox had no tools by default add them after the start."""
    async with make() as sandbox:
        sandbox.add_tool(ToolFactory.create_tool("python_executor"))
        assert (await sandbox.execute_tool("python_executor", {"code": "1"})).success
        with pytest.raises(ValueError, match="already added"):
            sandbox.add_tool(ToolFactory.create_tool("python_executor"))


async def test_tools_that_were_named_cannot_be_added_again(daemon: FakeDaemon) -> None:
    async with make(DockerSandboxConfig(tools_config=["python_executor"])) as sandbox:
        with pytest.raises(ValueError, match="Tool python_executor is already added"):
            sandbox.add_tool(ToolFactory.create_tool("python_executor"))


def test_a_tool_that_cannot_be_used_cannot_be_added() -> None:
    class Notebook(Hello):
        @property
        def required_sandbox_types(self) -> list[SandboxType]:
            return [SandboxType.DOCKER_NOTEBOOK]

    with pytest.raises(ValueError, match="requires a sandbox of type docker_notebook"):
        make().add_tool(Notebook())
    with pytest.raises(ValueError, match="not enabled"):
        make().add_tool(Hello(enabled=False))


async def test_a_sandbox_that_was_lost_shows_it(daemon: FakeDaemon) -> None:
    daemon.programs["1"] = result(finished=ended("SANDBOX_LOST"))
    async with make() as sandbox:
        assert not (await sandbox.execute_tool("python_executor", {"code": "1"})).success
        assert sandbox.status is SandboxStatus.ERROR


async def test_a_sandbox_that_is_gone_shows_it_and_can_be_made_anew(daemon: FakeDaemon) -> None:
    async with make() as sandbox:
        daemon.sandboxes.clear()
        with pytest.raises(errors.SandboxNotFound):
            await sandbox.execute_tool("python_executor", {"code": "1"})
        assert sandbox.status is SandboxStatus.ERROR
        await sandbox.start()
        assert (await sandbox.execute_tool("python_executor", {"code": "1"})).success


async def test_before_the_start_nothing_can_be_run(daemon: FakeDaemon) -> None:
    sandbox = make()
    for use in (
        sandbox.execute_tool("python_executor", {"code": "1"}),
        sandbox.execute_command("ls"),
        sandbox.put_file("a", "b"),
        sandbox.read_file("a"),
        sandbox.put_dir(".", "x"),
        sandbox.put_archive("x", b"x"),
        anext(sandbox.stream("python_executor", {"code": "1"})),
    ):
        with pytest.raises(errors.WrongState, match=r"call start\(\) first"):
            await use
    assert daemon.requests == []


# -- commands and streams ----------------------------------------------------------------------------------------


async def test_a_command_is_run_as_it_was_given(daemon: FakeDaemon) -> None:
    daemon.programs["echo a b"] = result(b"a b\n", b"w", exited(3))
    async with make() as sandbox:
        found = await sandbox.execute_command(["echo", "a b"], timeout=0, stream=False)
    assert (found.command, found.exit_code, found.stdout, found.stderr) == (["echo", "a b"], 3, "a b\n", "w")
    (request,) = daemon.asked(execution_pb.RunRequest)
    assert (request.spec.tool, request.spec.parameters_json) == ("command", '{"command":["echo","a b"],"timeout":0}')


async def test_what_happens_can_be_watched(daemon: FakeDaemon) -> None:
    output = execution_pb.Output(channel=execution_pb.CHANNEL_STDOUT, data=b"x")
    daemon.events = [
        [
            execution_pb.ExecutionEvent(started=execution_pb.Started()),
            execution_pb.ExecutionEvent(output=output),
            execution_pb.ExecutionEvent(finished=exited()),
        ]
    ]
    async with make() as sandbox:
        seen = [event async for event in sandbox.stream("bash", {"command": "x"})]
        with pytest.raises(errors.ToolNotFound):
            await anext(sandbox.stream("nope"))
    assert [type(event) for event in seen[1:]] == [Output, Finished]
    (request,) = daemon.asked(execution_pb.ExecuteRequest)
    assert request.start.tool == "shell_executor"


@pytest.mark.parametrize(
    ("config", "parameters", "expected"),
    [
        ({}, {"timeout": 5}, 5.0),
        ({}, {}, 30.0),
        ({"timeout": 7}, {}, 7.0),
        ({"timeout": 0}, {}, None),
        ({"tools_config": {"t": {"timeout": 9}}}, {}, 9.0),
        ({}, {"timeout": 0}, None),
        ({}, {"timeout": None}, None),
        ({}, {"timeout": "soon"}, None),
        ({}, {"timeout": 1e99}, 30 * 86400.0),
        ({}, {"timeout": 10**400}, 30 * 86400.0),
    ],
)
def test_how_long_to_wait_follows_the_timeout(config: Any, parameters: Any, expected: float | None) -> None:
    assert make(DockerSandboxConfig(**config)).call("t", parameters).timeout_s == expected


# -- files -------------------------------------------------------------------------------------------------------


async def test_files_go_in_and_come_out(daemon: FakeDaemon) -> None:
    async with make(sandbox_id="box") as sandbox:
        await sandbox.put_file("a.txt", "grün", encoding="latin-1")
        await sandbox.put_file("b.bin", b"\x00\xff")
        assert daemon.files["box", "a.txt"] == (b"gr\xfcn", 0o644)
        assert await sandbox.read_file("b.bin") == b"\x00\xff"
        with pytest.raises(ValueError, match="cannot be written as 'ascii'"):
            await sandbox.put_file("c", "grün", encoding="ascii")
        with pytest.raises(ValueError, match="cannot be written as 'klingon'"):
            await sandbox.put_file("c", "x", encoding="klingon")


async def test_an_attached_object_knows_the_sandbox(daemon: FakeDaemon) -> None:
    async with make(DockerSandboxConfig(tools_config=["python_executor"])) as sandbox:
        context = await sandbox._connected()
        other = await DockerSandbox.attach(context, sandbox.id)
        assert (other.id, other.status, other.list_tools()) == (sandbox.id, SandboxStatus.RUNNING, ["python_executor"])
        assert (await other.execute_tool("python_executor", {"code": "1"})).success
    with pytest.raises(errors.SandboxNotFound):
        await DockerSandbox.attach(context, sandbox.id)
    assert len(daemon.asked(tool_pb.ListToolsRequest)) == 2
