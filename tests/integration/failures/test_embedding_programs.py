"""Programs with a daemon of their own that are killed, interrupted, started together, threaded or forked."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from tests.integration.failures.ground import Ground, Program, until

COMMON = """
import os, sys, threading
from ms_enclave.sandbox import sync
from ms_enclave.sandbox.boxes import SandboxFactory

def a_sandbox():
    return sync.SandboxFactory.create_sandbox("docker", {"memory_limit": "64m"})

def python(sandbox, code):
    result = sandbox.execute_tool("python_executor", {"code": code})
    assert result.success, result
    return result.output.strip()

def told(*words):
    print(*words, flush=True)

def wait():
    sys.stdin.read()

"""
BUSY_ASYNC = """
import asyncio

async def main():
    async with SandboxFactory.create_sandbox("docker", {"memory_limit": "64m"}) as sandbox:
        told("started")
        await sandbox.execute_tool("bash", {"command": "sleep 600"})

asyncio.run(main())
"""
BUSY_SYNC = """
with a_sandbox() as sandbox:
    told("started")
    sandbox.execute_tool("bash", {"command": "sleep 600"})
"""
BUSY_AND_CARELESS = """
sandbox = a_sandbox()
sandbox.start()
told("started")
sandbox.execute_tool("bash", {"command": "sleep 600"})
"""
SHORT = "with a_sandbox() as sandbox: told(python(sandbox, 'print(6 * 7)'))"


def start(ground: Ground, code: str, name: str = "program") -> Program:
    return ground.program(COMMON + code, name=name)


def daemon_of(ground: Ground, program: Program) -> int:
    """The process id of a program's own daemon."""
    (directory,) = (ground.run_dir / "ms-enclave").glob(f"{program.process.pid}-*")
    return int((directory / "state" / "lock").read_text())


async def gone(daemon: int) -> None:
    """Waits for the end of a daemon, which is not our child."""
    await until(lambda: not Path(f"/proc/{daemon}").exists(), "the end of the daemon")


# -- killed ------------------------------------------------------------------------------------------------------


async def test_a_program_that_is_killed_takes_daemon_and_sandboxes_along(ground: Ground):
    program = start(ground, BUSY_SYNC)
    await program.says("started")
    daemon = daemon_of(ground, program)
    assert len(ground.containers()) == 1
    program.kill()
    await gone(daemon)
    assert ground.containers() == []

    # What there may be on the disk, the next one clears away.
    following = start(ground, SHORT, "following")
    assert await following.ended() == 0
    assert following.text == "42\n"
    assert ground.embedded_directories() == []


async def test_a_program_that_is_killed_together_with_its_daemon_is_cleared_up_after_by_the_next(ground: Ground):
    program = start(ground, BUSY_SYNC)
    await program.says("started")
    daemon = daemon_of(ground, program)
    (container,) = ground.containers()
    program.send(signal.SIGSTOP)  # or it would start another daemon
    os.kill(daemon, signal.SIGKILL)
    program.kill()
    await gone(daemon)
    assert ground.containers() == [container]

    following = start(ground, SHORT + "; wait()", "following")
    await following.says("42")
    await until(lambda: container not in ground.containers(), "the end of the container that nobody owns")
    following.go_on()
    assert await following.ended() == 0
    assert ground.embedded_directories() == []


async def test_what_a_program_and_its_daemon_left_can_be_pruned(ground: Ground):
    program = start(ground, BUSY_SYNC)
    await program.says("started")
    daemon = daemon_of(ground, program)
    program.send(signal.SIGSTOP)
    os.kill(daemon, signal.SIGKILL)
    assert "its program" in await pruned(ground, "waiting")  # it could start another
    program.kill()
    await gone(daemon)
    (container,) = ground.containers()
    assert f"would remove: container {container}" in await pruned(ground, "dry", "--dry-run")
    assert f"removed: container {container}: its daemon and its program are gone" in await pruned(ground, "done")
    assert (ground.containers(), ground.embedded_directories()) == ([], [])


async def pruned(ground: Ground, name: str, *flags: str) -> str:
    """What the command says."""
    command = [sys.executable, "-P", "-m", "enclaved", "prune", "--state-dir", str(ground.folder / "none"), *flags]
    environment = ground.environment(TMPDIR=str(ground.folder))
    running = Program(command, ground.folder / f"{name}.out", environment)
    assert await running.ended() == 0
    running.kill()
    return running.text


async def test_a_program_whose_daemon_is_killed_gets_another_with_its_sandboxes(ground: Ground):
    program = start(
        ground,
        """
kept = a_sandbox()
kept.start()
python(kept, "answer = 6 * 7")
told("started")
wait()
told(python(kept, "print(answer)"))
with a_sandbox() as sandbox:
    told(python(sandbox, "print(2 * 21)"))
""",
    )
    await program.says("started")
    daemon = daemon_of(ground, program)
    os.kill(daemon, signal.SIGKILL)
    program.go_on()
    assert await program.ended() == 0, program.text
    assert program.text == "started\n42\n42\n"
    assert ground.containers() == []


# -- interrupted -------------------------------------------------------------------------------------------------


async def test_ctrl_c_ends_a_program_in_the_middle_of_a_call_and_leaves_nothing(ground: Ground):
    codes = (BUSY_ASYNC, BUSY_SYNC, BUSY_AND_CARELESS)
    programs = [start(ground, code, f"program{number}") for number, code in enumerate(codes)]
    for program in programs:
        await program.says("started")
    daemons = [daemon_of(ground, program) for program in programs]
    for program in programs:
        program.press_ctrl_c()
    for program, daemon in zip(programs, daemons, strict=True):
        assert await program.ended() == -signal.SIGINT
        assert program.text.splitlines()[-1] == "KeyboardInterrupt"
        await gone(daemon)
    assert ground.containers() == []
    assert ground.embedded_directories() == []


# -- together ----------------------------------------------------------------------------------------------------


async def test_programs_that_start_at_the_same_moment_have_a_daemon_each(ground: Ground):
    code = "with a_sandbox() as sandbox: told(python(sandbox, 'print(6 * 7)')); wait()"
    programs = [start(ground, code, f"program{number}") for number in range(2)]
    for program in programs:
        await program.says("42")
    assert len({daemon_of(ground, program) for program in programs}) == 2
    assert len(ground.containers()) == 2
    for program in programs:
        program.go_on()
        assert await program.ended() == 0, program.text
        assert program.text == "42\n"
    assert ground.containers() == []
    assert ground.embedded_directories() == []


async def test_threads_of_a_program_share_one_daemon(ground: Ground):
    program = start(
        ground,
        """
meet = threading.Barrier(8)
def work(number):
    meet.wait()
    with a_sandbox() as sandbox:
        answers.append(python(sandbox, f"print({number})"))
answers = []
threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
told(sorted(answers))
wait()
""",
    )
    await program.says("]")
    assert program.text == f"{[str(number) for number in range(8)]}\n"
    assert len(ground.embedded_directories()) == 1
    daemon = daemon_of(ground, program)
    program.go_on()
    assert await program.ended() == 0
    await gone(daemon)
    assert ground.embedded_directories() == []


# -- forked ------------------------------------------------------------------------------------------------------


async def test_a_forked_child_uses_its_parents_sandbox_and_its_end_ends_nothing(ground: Ground):
    program = start(
        ground,
        """
sandbox = a_sandbox()
sandbox.start()
python(sandbox, "x = 40")
if (child := os.fork()) == 0:
    told("child:", python(sandbox, "x += 2; print(x)"))
    sys.exit(3)  # with everything that an exit does
told("child ended with", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
told("parent:", python(sandbox, "print(x)"))
sandbox.cleanup()
""",
    )
    assert await program.ended() == 0, program.text
    assert program.text == "child: 42\nchild ended with 3\nparent: 42\n"
    assert ground.embedded_directories() == []
    assert ground.containers() == []


async def test_forked_workers_have_daemons_of_their_own_which_end_with_them(ground: Ground):
    program = start(
        ground,
        """
import multiprocessing
def work(number):
    with a_sandbox() as sandbox:
        return python(sandbox, f"print({number} * 7)")
with a_sandbox() as sandbox:
    python(sandbox, "1")
    with multiprocessing.get_context("fork").Pool(2) as pool:
        told(pool.map(work, [6, 7], chunksize=1))
    told(python(sandbox, "print('still here')"))
""",
    )
    assert await program.ended() == 0, program.text
    assert program.text == "['42', '49']\nstill here\n"
    await until(lambda: ground.containers() == [], "the end of all containers")


async def test_a_fork_in_the_middle_of_a_call_is_an_error_in_the_child_and_nothing_to_the_call(ground: Ground):
    program = start(
        ground,
        """
sandbox = a_sandbox()
sandbox.start()
answers, ends = [], []
def call():
    code = "import os, time\\nwhile not os.path.exists('/tmp/go'): time.sleep(0.01)\\nprint('finished')"
    answers.append(python(sandbox, code))
calling = threading.Thread(target=call)
calling.start()
while not sandbox.refresh().metadata["active_executions"]:
    pass
for _ in range(10):
    if (child := os.fork()) == 0:
        try:
            python(sandbox, "print(1)")
        except RuntimeError as error:
            told(type(error).__name__, "'spawn' or 'forkserver'" in str(error))
            os._exit(3)
    ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
told(ends)
sandbox.execute_command("touch /tmp/go")
calling.join()
told(answers)
sandbox.cleanup()
""",
    )
    assert await program.ended() == 0, program.text
    assert program.text == "EnclaveError True\n" * 10 + f"{[3] * 10}\n['finished']\n"
    assert ground.containers() == []
