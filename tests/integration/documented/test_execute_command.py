"""``Sandbox.execute_command``: what it runs, and the texts and codes that users look at."""

from __future__ import annotations

import pytest
from ms_enclave.errors import InvalidRequest, PolicyDenied
from ms_enclave.sandbox.boxes import Sandbox
from ms_enclave.sandbox.model import CommandResult, ExecutionStatus


async def test_a_string_goes_through_a_shell(sandbox: Sandbox):
    result = await sandbox.execute_command("echo one | tr a-z A-Z; echo $((40 + 2))")
    assert isinstance(result, CommandResult)
    assert (result.status, result.exit_code, result.stdout, result.stderr) == ("success", 0, "ONE\n42\n", "")


async def test_a_list_is_run_as_it_is(sandbox: Sandbox):
    result = await sandbox.execute_command(["printf", "%s|", "two words", "$HOME", "a;b"])
    assert result.stdout == "two words|$HOME|a;b|"


@pytest.mark.parametrize("command", ["exit 0", ["true"]])
async def test_the_command_is_returned_as_the_caller_gave_it(sandbox: Sandbox, command: str | list[str]):
    assert (await sandbox.execute_command(command)).command == command


async def test_standard_error_is_kept_apart(sandbox: Sandbox):
    result = await sandbox.execute_command("echo out; echo err >&2")
    assert (result.success, result.stdout, result.stderr) == (True, "out\n", "err\n")


@pytest.mark.parametrize("code", [1, 3, 124, 137, 255])
async def test_an_exit_code_is_an_error_and_never_taken_for_a_timeout(sandbox: Sandbox, code: int):
    result = await sandbox.execute_command(f"exit {code}")
    assert (result.status, result.exit_code) == (ExecutionStatus.ERROR, code)
    assert result.stderr == f"Command failed with exit code {code}"


async def test_a_command_that_says_why_it_failed_is_quoted(sandbox: Sandbox):
    result = await sandbox.execute_command("echo no such thing >&2; exit 4")
    assert (result.exit_code, result.stderr) == (4, "no such thing\n")


async def test_a_signal_is_told_from_an_exit_code(sandbox: Sandbox):
    result = await sandbox.execute_command("kill -KILL $$")
    assert (result.status, result.exit_code) == (ExecutionStatus.ERROR, 137)
    assert result.stderr == "Command failed with exit code 137 (killed by signal 9, SIGKILL)"


@pytest.mark.parametrize(("timeout", "text"), [(1, "1"), (0.5, "0.5")])
async def test_a_timeout_is_a_status_of_its_own(sandbox: Sandbox, timeout: float, text: str):
    result = await sandbox.execute_command("echo begun; sleep 60", timeout=timeout)
    assert (result.status, result.exit_code, result.stdout) == (ExecutionStatus.TIMEOUT, -1, "begun\n")
    assert result.stderr == f"Command timed out after {text} seconds"


async def test_a_timeout_kills_everything_that_the_command_started(sandbox: Sandbox):
    await sandbox.execute_command("sleep 60 & setsid sleep 60 & sleep 60", timeout=0.5)
    left = await sandbox.execute_command("grep -slx sleep /proc/[0-9]*/comm")
    assert left.stdout == ""


async def test_timeout_zero_means_the_longest_that_the_policy_allows(sandbox: Sandbox):
    assert (await sandbox.execute_command("sleep 0.05; echo done", timeout=0)).stdout == "done\n"


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), "soon"])
async def test_a_timeout_that_is_no_number_of_seconds_is_refused(sandbox: Sandbox, timeout: float):
    with pytest.raises(InvalidRequest, match=r"timeout|parameters"):
        await sandbox.execute_command("true", timeout=timeout)


async def test_a_timeout_beyond_the_policy_is_refused_and_names_the_limit(sandbox: Sandbox):
    with pytest.raises(PolicyDenied, match="at most 3600 s are granted"):
        await sandbox.execute_command("true", timeout=10_000)


@pytest.mark.parametrize("command", ["", "  \n", []])
async def test_no_command_is_a_failed_result(sandbox: Sandbox, command: str | list[str]):
    result = await sandbox.execute_command(command)
    assert (result.status, result.exit_code, result.stderr) == (ExecutionStatus.ERROR, -1, "No command provided")


async def test_a_program_that_does_not_exist_is_told_as_a_shell_tells_it(sandbox: Sandbox):
    result = await sandbox.execute_command(["no-such-program"])
    assert (result.exit_code, result.stderr) == (127, "no-such-program: command not found\n")


async def test_commands_run_in_the_working_directory_as_a_user_without_rights(sandbox: Sandbox):
    result = await sandbox.execute_command("pwd; echo $HOME; id -u; grep CapEff /proc/self/status; touch mine")
    directory, home, uid, capabilities = (result.stdout or "").splitlines()
    assert (directory, home) == ("/sandbox", "/sandbox")
    assert int(uid) > 0
    assert capabilities.split() == ["CapEff:", "0000000000000000"]


async def test_output_of_many_megabytes_arrives_whole(sandbox: Sandbox):
    result = await sandbox.execute_command("head -c 6000000 /dev/zero | tr '\\0' x")
    assert result.stdout == "x" * 6_000_000


async def test_bytes_that_are_no_text_are_replaced(sandbox: Sandbox):
    assert (await sandbox.execute_command(r"printf 'a\377b'")).stdout == "a\N{REPLACEMENT CHARACTER}b"
