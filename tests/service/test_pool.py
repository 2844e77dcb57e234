"""Pools over the real guest: what one call leaves behind is gone for the next, whatever it did."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from enclaved.core.crew import PoolParts
from enclaved.core.pool import Pools
from enclaved.core.reset import ResetFailed, reset
from enclaved.errors import (
    InvalidRequest,
    LimitReached,
    PolicyDenied,
    PoolBusy,
    PoolNotFound,
    SandboxNotFound,
    ToolNotFound,
)
from enclaved.model import NoticeKind, PoolPlan, RunResult, SandboxRequest, SandboxState, ToolCall, Verdict
from tests.service.guest.laboratory import (
    PATIENCE_S,
    Box,
    Laboratory,
    ended,
    first_output,
    laboratory,
    printed,
    text,
    until,
)

MIB = 1024 * 1024


@pytest.fixture
async def lab() -> AsyncIterator[Laboratory]:
    async with laboratory() as made:
        yield made


@pytest.fixture
async def pools(lab: Laboratory) -> AsyncIterator[Pools]:
    made = Pools(parts_of(lab))
    yield made
    made.close()


def parts_of(lab: Laboratory) -> PoolParts:
    return PoolParts(
        sandboxes=lab.sandboxes,
        executions=lab.executions,
        background=lab.background,
        metrics=lab.metrics,
        pools=lab.state.pools,
        leases=lab.state.leases,
    )


async def pool_of(pools: Pools, size: int, **request: Any) -> list[str]:
    return list((await pools.initialize(PoolPlan(size, SandboxRequest(**request)), pool_id="p")).sandbox_ids)


async def run(
    pools: Pools, tool: str, parameters: dict[str, Any], wait_s: float = PATIENCE_S, **call: Any
) -> RunResult:
    _, result = await pools.run("p", ToolCall("", tool, parameters, **call), wait_s)
    return result


async def python(pools: Pools, code: str, **call: Any) -> RunResult:
    return await run(pools, "python_executor", {"code": code}, **call)


async def shell(pools: Pools, command: str, **call: Any) -> RunResult:
    return await run(pools, "shell_executor", {"command": command}, **call)


def resets(lab: Laboratory, outcome: str) -> float:
    return lab.metrics.value("enclaved_pool_resets_total", outcome=outcome)


async def all_idle(lab: Laboratory, size: int) -> None:
    await until(lambda: lab.metrics.value("enclaved_pool_members", state="idle") == size)


# -- what a call leaves behind


async def test_a_call_runs_in_a_member_and_says_in_which(pools: Pools) -> None:
    (member,) = await pool_of(pools, 1)
    sandbox_id, result = await pools.run("p", ToolCall("", "python_executor", {"code": "print(6 * 7)"}))
    assert (sandbox_id, printed(result)) == (member, "42\n")


async def test_variables_of_one_call_are_unknown_to_the_next(lab: Laboratory, pools: Pools) -> None:
    await pool_of(pools, 1)
    await python(pools, "secret = 1; import builtins; builtins.secret = 2")
    result = await python(pools, "print(secret)")
    assert ended(result).verdict is Verdict.EXCEPTION
    assert "NameError" in text(result.stderr)
    await all_idle(lab, 1)
    assert resets(lab, "clean") == 2


async def test_files_of_one_call_are_unknown_to_the_next(lab: Laboratory, pools: Pools) -> None:
    await pool_of(pools, 1)
    mark = f"enclaved-test-{os.getpid()}"
    leave = f"echo x > here; mkdir -p a/b/c; echo y > a/b/c/d; echo z > /tmp/{mark}; echo s > /dev/shm/{mark}; ls"
    assert printed(await shell(pools, leave)) == "a\nhere\n"
    assert printed(await shell(pools, f"ls -A; ls -A /tmp /dev/shm | grep {mark}; true")) == ""
    await all_idle(lab, 1)
    assert resets(lab, "clean") == 2


async def test_processes_of_one_call_do_not_live_to_see_the_next(lab: Laboratory, pools: Pools) -> None:
    (member,) = await pool_of(pools, 1)
    await python(pools, "import subprocess; subprocess.Popen(['sleep', '600'], start_new_session=True)")
    await all_idle(lab, 1)
    left = [process["arguments"][0] for process in await Box(lab, member).processes() if process["uid"]]
    assert "sleep" not in left


async def test_a_reset_proves_what_it_did(lab: Laboratory) -> None:
    box = await lab.box()
    await box.python("x = 1")
    sleeper = await box.open_shell("sleep 600 & echo started; sleep 600")
    await box.shell("mkdir -p a/b; touch a/b/c d")
    assert await first_output(sleeper) == b"started\n"
    proof = (await reset(box.record, lab.executions, None)).proof
    assert proof.processes_killed >= 3  # the context, the shell, a sleep, and another if it is there already
    assert proof.files_removed == 4
    again = (await reset(box.record, lab.executions, None)).proof
    assert (again.processes_killed, again.files_removed) == (0, 0)
    assert (await sleeper.ended).verdict is Verdict.SANDBOX_LOST


HOSTILE = {
    "closed_directories": "mkdir -p a/b; touch a/b/c; chmod 0 a/b a",
    "a_closed_working_directory": "touch x; chmod 0 .",
    "odd_names": r"""touch -- '-rf' ' ' $'new\nline' '*' '.hidden' $'\xff\xfe'; mkdir '.wiped-1-1' ...""",
    "links_to_elsewhere": "ln -s / root; ln -s /etc/passwd file; ln -s nothing dangling; mkdir l; ln -s .. l/up",
    "a_pipe_and_a_socket": "mkfifo pipe; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"sock\")'",
    "a_deep_tree": 'python3 -c \'\nimport os\nfor _ in range(1500):\n    os.mkdir("d" * 200); os.chdir("d" * 200)\n\'',
    "many_files": "mkdir m; cd m; seq 3000 | xargs touch",
}


@pytest.mark.parametrize("leave", HOSTILE.values(), ids=HOSTILE.keys())
async def test_whatever_a_call_leaves_is_removed(lab: Laboratory, pools: Pools, leave: str) -> None:
    await pool_of(pools, 1)
    assert ended(await shell(pools, leave)).exit_code == 0
    assert printed(await shell(pools, "ls -A; stat -c %a .")) == "700\n"
    await all_idle(lab, 1)
    assert (resets(lab, "clean"), resets(lab, "replaced")) == (2, 0)


MAKE_SHARED_OBJECTS = """
import ctypes
c = ctypes.CDLL(None)
print(c.shmget(0, 4096, 0o1600) >= 0, c.semget(0, 1, 0o1600) >= 0, c.msgget(0, 0o1600) >= 0)
"""
COUNT_SHARED_OBJECTS = """
import os
rows = [line.split() for kind in ("shm", "sem", "msg") for line in open("/proc/sysvipc/" + kind)]
print(sum(str(os.getuid()) in row for row in rows))
"""


async def test_shared_memory_of_system_v_is_removed(lab: Laboratory, pools: Pools) -> None:
    await pool_of(pools, 1)
    made = printed(await python(pools, MAKE_SHARED_OBJECTS))
    assert made == "True True True\n"
    assert printed(await python(pools, COUNT_SHARED_OBJECTS)) == "0\n"
    await all_idle(lab, 1)
    assert resets(lab, "clean") == 2


async def test_a_call_that_is_killed_at_its_timeout_leaves_nothing(lab: Laboratory, pools: Pools) -> None:
    await pool_of(pools, 1)
    result = await python(pools, "x = 1\nopen('f', 'w').write('x')\nimport time; time.sleep(600)", timeout_s=0.5)
    assert ended(result).verdict is Verdict.TIMEOUT
    assert printed(await shell(pools, "ls -A")) == ""


async def test_what_somebody_ran_in_a_member_past_the_pool_is_gone_too(lab: Laboratory, pools: Pools) -> None:
    (member,) = await pool_of(pools, 1)
    await Box(lab, member).shell("touch left")
    assert printed(await shell(pools, "ls -A")) == ""


# -- answers


async def test_long_output_is_cut_and_the_run_ends_all_the_same(pools: Pools) -> None:
    await pool_of(pools, 1)
    code = f"import sys; sys.stdout.write('o' * {9 * MIB}); sys.stderr.write('e' * 10)"
    result = await python(pools, code)
    assert (len(result.stdout), result.stderr) == (MIB, b"e" * 10)
    assert (ended(result).verdict, ended(result).exit_code) == (Verdict.EXITED, 0)
    (gap,) = result.notices
    assert (gap.kind, gap.channel, gap.offset, gap.length_bytes) == (NoticeKind.GAP, 1, MIB, 8 * MIB)
    assert printed(await shell(pools, "echo next")) == "next\n"


async def test_output_that_just_fits_has_no_gap(pools: Pools) -> None:
    await pool_of(pools, 1)
    result = await python(pools, f"import sys; sys.stdout.write('o' * {MIB})")
    assert (len(result.stdout), result.notices) == (MIB, ())


async def test_a_call_that_comes_again_gets_the_answer_of_the_first(pools: Pools) -> None:
    await pool_of(pools, 2)
    command = {"command": "echo $RANDOM$RANDOM"}
    call = ToolCall("", "shell_executor", command, execution_id="once")
    first, second = await asyncio.gather(pools.run("p", call), pools.run("p", call))
    third = await pools.run("p", call)
    assert first == second == third


async def test_a_call_that_makes_no_sense_is_refused_without_a_member(lab: Laboratory, pools: Pools) -> None:
    await pool_of(pools, 1, tools={"python_executor": {}})
    with pytest.raises(InvalidRequest, match="No code provided"):
        await python(pools, "")
    with pytest.raises(ToolNotFound, match="available: python_executor"):
        await shell(pools, "true")
    with pytest.raises(PolicyDenied):
        await python(pools, "1", timeout_s=1e6)
    with pytest.raises(InvalidRequest, match="execution_id"):
        await python(pools, "1", execution_id="no id")
    await all_idle(lab, 1)
    assert resets(lab, "clean") == 0


async def test_a_call_to_a_pool_that_is_not_there_says_so(pools: Pools) -> None:
    with pytest.raises(PoolNotFound, match="initialize it first"):
        await python(pools, "1")


# -- order, time, and those who leave


async def test_more_calls_than_members_are_all_answered(lab: Laboratory, pools: Pools) -> None:
    members = await pool_of(pools, 2)
    calls = [pools.run("p", ToolCall("", "python_executor", {"code": f"print({n})"})) for n in range(8)]
    answers = await asyncio.gather(*calls)
    assert [printed(result) for _, result in answers] == [f"{n}\n" for n in range(8)]
    assert {sandbox_id for sandbox_id, _ in answers} == set(members)


async def test_calls_run_one_at_a_time_in_a_member(pools: Pools) -> None:
    await pool_of(pools, 1)
    code = "import os; print(os.path.exists('f')); open('f', 'w').close()"
    results = await asyncio.gather(*(python(pools, code) for _ in range(4)))
    assert [printed(result) for result in results] == ["False\n"] * 4


async def test_none_free_in_time_is_told_and_harms_nobody(lab: Laboratory, pools: Pools) -> None:
    await pool_of(pools, 1)
    slow = asyncio.create_task(shell(pools, "sleep 600"))
    await until(lambda: lab.metrics.value("enclaved_executions_active") == 1)
    with pytest.raises(PoolBusy, match="1 of 1 run calls"):
        await shell(pools, "true", wait_s=0.05)
    next_one = asyncio.create_task(shell(pools, "echo next"))
    await until(lambda: lab.metrics.value("enclaved_pool_waiting") == 1)
    slow.cancel()
    assert printed(await next_one) == "next\n"


async def test_a_caller_that_leaves_ends_its_run(lab: Laboratory, pools: Pools) -> None:
    (member,) = await pool_of(pools, 1)
    task = asyncio.create_task(shell(pools, "sleep 600"))
    await until(lambda: lab.metrics.value("enclaved_executions_active") == 1)
    assert pools.role(member) == "busy"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await all_idle(lab, 1)
    assert pools.role(member) == "idle"
    assert lab.metrics.value("enclaved_executions_active") == 0
    assert resets(lab, "clean") == 1


# -- members that are lost


async def test_a_member_whose_guest_dies_is_replaced_under_its_id(lab: Laboratory, pools: Pools) -> None:
    (member,) = await pool_of(pools, 1)
    task = asyncio.create_task(shell(pools, "sleep 600"))
    await until(lambda: lab.metrics.value("enclaved_executions_active") == 1)
    os.kill(Box(lab, member).guest_pid(), signal.SIGKILL)
    assert ended(await task).verdict is Verdict.SANDBOX_LOST
    sandbox_id, result = await pools.run("p", ToolCall("", "shell_executor", {"command": "echo again"}))
    assert (sandbox_id, printed(result)) == (member, "again\n")
    assert resets(lab, "replaced") == 1


async def test_a_member_that_was_deleted_behind_our_back_comes_back(lab: Laboratory, pools: Pools) -> None:
    (member,) = await pool_of(pools, 1)
    await lab.sandboxes.delete(member)
    assert printed(await shell(pools, "echo again")) == "again\n"
    assert lab.sandboxes.get(member).state is SandboxState.RUNNING


@pytest.mark.parametrize("remove_on_exit", [True, False])
async def test_a_member_that_was_stopped_behind_our_back_comes_back(
    lab: Laboratory, pools: Pools, remove_on_exit: bool
) -> None:
    (member,) = await pool_of(pools, 1, remove_on_exit=remove_on_exit)
    await lab.sandboxes.stop(member)
    assert printed(await shell(pools, "echo again")) == "again\n"


async def test_a_reset_of_a_sandbox_that_is_gone_fails(lab: Laboratory) -> None:
    box = await lab.box()
    record = box.record
    await lab.sandboxes.delete(box.id)
    with pytest.raises(ResetFailed):
        await reset(record, lab.executions, None)


# -- the pool as a whole


async def test_members_are_sandboxes_like_others(lab: Laboratory, pools: Pools) -> None:
    info = await pools.initialize(PoolPlan(2, labels={"team": "a"}))
    listed = lab.sandboxes.list(labels={"team": "a"}).sandboxes
    assert {sandbox.id for sandbox in listed} == set(info.sandbox_ids)
    assert [pools.role(sandbox_id) for sandbox_id in info.sandbox_ids] == ["idle", "idle"]
    assert pools.role((await lab.box()).id) is None
    assert pools.stats() == {info.id: 2}


async def test_a_pool_that_policy_does_not_grant_is_refused_and_nothing_is_left(lab: Laboratory, pools: Pools) -> None:
    with pytest.raises(PolicyDenied, match="memory_limit_bytes"):
        await pool_of(pools, 3, memory_limit_bytes=2**40)
    assert lab.sandboxes.list().sandboxes == ()


async def test_a_pool_larger_than_the_daemon_may_be_is_refused(lab: Laboratory, pools: Pools) -> None:
    most = lab.sandboxes.policy.limits.sandboxes_max
    lab.sandboxes.check_room(most, "size")
    with pytest.raises(PolicyDenied) as denied:
        lab.sandboxes.check_room(most + 1, "size")
    assert denied.value.metadata == {"rule": "resources", "field": "size", "limit": str(most)}
    await lab.box()
    with pytest.raises(LimitReached, match=f"has 1 sandboxes, and {most} more"):
        lab.sandboxes.check_room(most, "size")


async def test_deleting_a_pool_ends_the_calls_that_run_in_it(lab: Laboratory, pools: Pools) -> None:
    (member,) = await pool_of(pools, 1)
    task = asyncio.create_task(shell(pools, "sleep 600"))
    await until(lambda: lab.metrics.value("enclaved_executions_active") == 1)
    await pools.delete("p")
    assert ended(await task).verdict is Verdict.SANDBOX_LOST
    with pytest.raises(SandboxNotFound):
        lab.sandboxes.get(member)
    with pytest.raises(PoolNotFound):
        await shell(pools, "true")
