"""``ms-enclave run``: a program in a sandbox behaves as if it ran here."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Command
from tests.integration.failures.ground import PATIENCE_S, Ground

FOR_EVER = "import signal\nprint('runs', flush=True)\nsignal.pause()"
HANDLES_CTRL_C = """
import signal
try:
    print('runs', flush=True)
    signal.pause()
except KeyboardInterrupt:
    print('cleaned up')
    raise SystemExit(5)
"""


def line(process: subprocess.Popen[bytes]) -> bytes:
    """Reads a line of its output."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_its_output_appears_while_it_runs_and_its_input_reaches_it_while_it_runs(command: Command) -> None:
    with command.start("run", "-c", "for _ in range(3): print(input('> ').upper(), flush=True)") as process:
        assert process.stdin is not None
        for word in (b"one", b"two", b"three"):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            assert line(process) == b"> " + word.upper() + b"\n"
        assert process.communicate(timeout=PATIENCE_S) == (b"", b"")
    assert process.returncode == 0


def test_output_is_the_very_bytes_on_the_same_streams(command: Command) -> None:
    code = "import os; os.write(1, bytes(range(256))); os.write(2, b'\\xff\\n')"
    done = command.run("run", "-c", code)
    assert (done.stdout, done.stderr, done.returncode) == (bytes(range(256)), b"\xff\n", 0)


def test_a_large_input_comes_back_whole(command: Command) -> None:
    data = bytes(range(256)) * 20_000
    code = "import sys, shutil; shutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer)"
    done = command.run("run", "-c", code, stdin=data)
    assert done.stdout == data


def test_a_program_need_not_read_its_input(command: Command) -> None:
    done = command.run("run", "-c", "print(1)", stdin=b"x" * 5_000_000)
    assert (done.stdout, done.returncode) == (b"1\n", 0)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["-c", "raise SystemExit(7)"], 7, ""),
        (["-c", "raise SystemExit(124)"], 124, ""),
        (["-c", "1/0"], 1, "ZeroDivisionError: division by zero\n"),
        (["--timeout", "0.2", "-c", "while True: pass"], 124, "ms-enclave: Command timed out after 0.2 seconds\n"),
        (["--memory", "64m", "-c", "bytearray(10**9)"], 137, "memory limit (exit code 137)\n"),
        (["--shell", "-c", "kill -USR1 $$"], 138, "(killed by signal 10, SIGUSR1)\n"),
        (["--shell", "-c", "exit 3"], 3, ""),
        (["-c", ""], 125, "ms-enclave: parameters.code: No code provided\n"),
        (["--image", "no-such-image:1", "-c", "1"], 125, "images.aliases\n"),
        (["--env", "LD_PRELOAD=x", "-c", "1"], 125, None),
    ],
)
def test_the_exit_code_says_how_it_ended(
    command: Command, arguments: list[str], exit_code: int, said: str | None
) -> None:
    done = command.run("run", *arguments)
    assert (done.returncode, done.stdout) == (exit_code, b"")
    if said is None:
        assert done.stderr.startswith(b"ms-enclave: ")
        assert done.stderr.count(b"\n") == 1
    else:
        assert done.stderr.decode().endswith(said)
        assert bool(done.stderr) == bool(said)


def test_it_runs_files_and_what_standard_input_says(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text("import sys\nprint(__name__, sys.stdin.read())")
    assert command.run("run", str(file), stdin=b"input").stdout == b"__main__ input\n"
    assert command.run("run", "-", stdin=file.read_bytes()).stdout == b"__main__ \n"
    file.write_text("echo $0 in $PWD")
    assert command.run("run", "--shell", str(file)).stdout.endswith(b" in /sandbox\n")


def test_limits_and_variables_reach_the_sandbox(command: Command) -> None:
    command.environment["PASSED_ON"] = "ours"
    code = "import os; print(os.environ['GIVEN'], os.environ['PASSED_ON'], os.environ.get('ABSENT'))"
    done = command.run("run", "-e", "GIVEN=a=b", "-e", "PASSED_ON", "-e", "ABSENT", "--cpu", "0.5", "-c", code)
    assert done.stdout == b"a=b ours None\n"


@pytest.mark.parametrize(
    ("code", "exit_code", "said"),
    [
        (FOR_EVER, 130, b""),
        (HANDLES_CTRL_C, 5, b"cleaned up\n"),
    ],
    ids=["that knows nothing of it", "that handles it"],
)
def test_ctrl_c_interrupts_a_program(command: Command, code: str, exit_code: int, said: bytes) -> None:
    with command.start("run", "-c", code) as process:
        assert line(process) == b"runs\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (exit_code, said)
    assert (b"KeyboardInterrupt" in err) is (exit_code == 130)


def test_ctrl_c_interrupts_a_shell_script(command: Command) -> None:
    with command.start("run", "--shell", "-c", "echo runs; sleep 600; echo after") as process:
        assert line(process) == b"runs\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out) == (130, b"")


def test_a_second_ctrl_c_kills_a_program_that_ignores_the_first(command: Command) -> None:
    code = (
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('ignored', flush=True))\n"
        "print('runs', flush=True)\nwhile True: signal.pause()"
    )
    with command.start("run", "-c", code) as process:
        assert line(process) == b"runs\n"
        process.send_signal(signal.SIGINT)
        assert line(process) == b"ignored\n"
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert command.json("ps") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_removes_the_sandbox_first(command: Command, number: signal.Signals) -> None:
    with command.start("run", "-c", FOR_EVER) as process:
        assert line(process) == b"runs\n"
        assert len(command.json("ps")) == 1
        process.send_signal(number)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number
    assert command.json("ps") == []


def test_it_ends_when_nobody_reads_its_output_any_more(command: Command) -> None:
    with command.start("run", "-c", "while True: print('x' * 1000)") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(PATIENCE_S) == 141
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert command.json("ps") == []


def test_a_reader_that_waits_does_not_keep_ctrl_c_waiting(command: Command) -> None:
    code = "import sys\nwhile True: sys.stdout.write('x' * 100000)"
    with command.start("run", "-c", code) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"x"  # and now nobody reads
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 143
        process.stdout.close()


def test_with_json_the_result_is_one_object(command: Command) -> None:
    done = command.run(
        "run", "--json", "-c", "import sys\nprint(input())\nprint('b', file=sys.stderr)\n1/0", stdin=b"a"
    )
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, b"")
    assert (found["verdict"], found["exit_code"], found["stdout"]) == ("EXCEPTION", 1, "a\n")
    assert found["stderr"].startswith("b\nTraceback")
    assert found["exception"] == {"type": "ZeroDivisionError", "message": "division by zero"}
    assert found["truncated"] is False
    assert found["timeout_s"] == 30


def test_without_a_daemon_it_starts_one_of_its_own_that_leaves_nothing(ground: Ground) -> None:
    command = Command(ground.environment())
    done = command.run("run", "-c", "print('own')")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"own\n", b"")
    assert ground.embedded_directories() == []
    assert ground.containers() == []
