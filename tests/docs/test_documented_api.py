"""The documented examples run as printed: in fresh interpreters, with the installed package."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.docs.pages import blocks
from tests.docs.place import A_MANAGER, A_SANDBOX, PRELUDE, Place

PROGRAMS = [block.text for block in blocks("README.zh.md", "python")]
(
    BASIC,
    SERVER,
    CLIENT,
    CREATE_SANDBOX,
    EXECUTE_TOOL,
    GET_AVAILABLE_TOOLS,
    START_STOP_CLEANUP,
    MANAGER_CREATE_SANDBOX,
    MANAGER_EXECUTE_TOOL,
    MANAGER_LIST_SANDBOXES,
    ADVANCED,
    ERROR_HANDLING,
    KEEPS_STATE,
) = PROGRAMS


MANAGER_PARTS = [
    'config = DockerSandboxConfig(tools_config=["python_executor"])',
    MANAGER_CREATE_SANDBOX,
    *("params = {'code': 'print(1 + 1)'}", MANAGER_EXECUTE_TOOL, "print(result.output)"),
    *(MANAGER_LIST_SANDBOXES, "print([(s.id == sandbox_id, s.status.value) for s in sandboxes])"),
    *("await manager.stop()", "print(await manager.list_sandboxes())"),
]
MANAGER_PRINTS = ["", "", "", "", "2\n\n", "", "[(True, 'running')]\n", "", "[]\n"]


def test_the_examples_are_those_that_users_know():
    """They are quoted from what users of earlier versions have read: a change here is a change of the promise."""
    digest = hashlib.sha256("\0".join(PROGRAMS).encode()).hexdigest()
    assert digest == "6cf3933e9ce1a6d596285e19da6291ae6ed016c093b899ad8c811bc1be2d0575"


@pytest.mark.docker
def test_basic_usage(place: Place):
    assert place.run_program(BASIC) == "结果: Hello from sandbox!\n2 + 2 = 4\n\n"


@pytest.mark.docker
@pytest.mark.parametrize("server", ["program", "command"])
def test_http_server_and_client(place: Place, server: str):
    (command,) = (block.text for block in blocks("README.zh.md", "shell") if "run_server" in block.text)
    serving = place.server_program(SERVER) if server == "program" else place.server("bash", "-euc", f"exec {command}")
    with serving:
        printed = place.run_program(CLIENT)
    assert "'output': 'Hello from remote sandbox!\\n'" in printed
    assert "<ExecutionStatus.SUCCESS: 'success'>" in printed


@pytest.mark.docker
def test_a_http_manager_s_methods(place: Place):
    over_http = "from ms_enclave.sandbox.manager import HttpSandboxManager as LocalSandboxManager"
    a_manager = "manager = LocalSandboxManager(base_url='http://127.0.0.1:8000')\nawait manager.start()\n"
    with place.server_program(SERVER):
        assert place.run_parts([f"{PRELUDE}{over_http}", a_manager, *MANAGER_PARTS])[2:] == MANAGER_PRINTS


@pytest.mark.docker
def test_advanced_execution(place: Place):
    printed = place.run_program(f"{PRELUDE}{ADVANCED}\nimport asyncio\nasyncio.run(advanced_example())")
    assert json.loads(printed) == {"mean": 5.5, "median": 5.5, "stdev": 3.0276503540974917}


@pytest.mark.docker
def test_error_handling(place: Place):
    printed = place.run_program(f"{PRELUDE}{ERROR_HANDLING}\nimport asyncio\nasyncio.run(error_handling_example())")
    assert printed.startswith('错误:   File "<call 1>", line 1\n    print("Missing quote\n')
    assert printed.rstrip().endswith("SyntaxError: unterminated string literal (detected at line 1)")


@pytest.mark.docker
def test_create_sandbox(place: Place):
    look = "print(type(sandbox).__name__, sandbox.status.value)"
    assert place.run_parts([PRELUDE, CREATE_SANDBOX, look])[-1] == "DockerSandbox initializing\n"


@pytest.mark.docker
def test_execute_tool(place: Place):
    look = "print(result.success, repr(result.output), result.error)"
    assert place.run_parts([PRELUDE, A_SANDBOX, EXECUTE_TOOL, look])[-1] == "True 'Hello World\\n' None\n"


@pytest.mark.docker
def test_get_available_tools(place: Place):
    look = "import json\nprint(json.dumps(tools))"
    tools = json.loads(place.run_parts([PRELUDE, A_SANDBOX, GET_AVAILABLE_TOOLS, look])[-1])
    assert set(tools) == {"python_executor", "shell_executor", "file_operation"}
    assert {name: (schema["type"], schema["function"]["name"]) for name, schema in tools.items()} == {
        name: ("function", name) for name in tools
    }


@pytest.mark.docker
def test_start_stop_and_cleanup(place: Place):
    look = "print(sandbox.status.value)"
    parts = [PRELUDE, CREATE_SANDBOX, START_STOP_CLEANUP, look, "await sandbox.start()", EXECUTE_TOOL, look]
    printed = place.run_parts(parts)
    assert (printed[3], printed[-1]) == ("stopped\n", "running\n")


@pytest.mark.docker
def test_a_managers_methods(place: Place):
    assert place.run_parts([PRELUDE, A_MANAGER, *MANAGER_PARTS])[2:] == MANAGER_PRINTS


@pytest.mark.docker
def test_python_keeps_its_state(place: Place):
    look = "print(result.output)"
    again = "result = await sandbox.execute_tool('python_executor', {'code': 'print(x + 1)'})"
    printed = place.run_parts([PRELUDE, A_SANDBOX, KEEPS_STATE, look, again, look])
    assert (printed[3], printed[-1]) == ("Value: 42\n\n", "43\n\n")
