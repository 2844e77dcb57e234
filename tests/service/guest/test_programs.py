"""Programs of their own: commands and isolated Python. How they end, and what is left of them."""

from __future__ import annotations

import json
import os
import resource
import signal

import pytest

from enclaved.errors import LimitReached
from enclaved.model import Verdict
from tests.service.guest.laboratory import Box, Laboratory, ended, first_output, follow, printed, text, until

# Writes the numbers of processes before they do anything else, so that a test can look for them afterwards.
CHILDREN = {
    "a child": "sleep 600 & echo $! ; exec sleep 600",
    "a child of a child": "sh -c 'sleep 600 & echo $! $$; wait' ; exec sleep 600",
    "a session of its own": "setsid sh -c 'echo $$; exec sleep 600' & exec sleep 600",
    "an orphan in a session of its own": "(setsid sh -c 'echo $$; exec sleep 600' &) ; exec sleep 600",
    "one that ignores signals": "trap '' HUP INT TERM; echo $$; while :; do sleep 600; done",
    "one that stopped itself": "echo $$; kill -STOP $$; exec sleep 600",
    "one that respawns": "sh -c 'trap \"\" TERM; while :; do setsid sleep 600; done' & echo $!; exec sleep 600",
}


async def test_a_command_has_its_own_words_and_exit_code(box: Box) -> None:
    result = await box.shell("echo out; echo err >&2; exit 7")
    finished = ended(result)
    assert (result.stdout, result.stderr) == (b"out\n", b"err\n")
    assert (finished.verdict, finished.exit_code, finished.attested) == (Verdict.EXITED, 7, True)
    assert finished.state_preserved is None
    assert finished.bytes_total == {1: 4, 2: 4}


async def test_a_list_is_run_without_a_shell(box: Box) -> None:
    assert printed(await box.shell(["printf", "%s|", "a b", "$HOME", "*", ""])) == "a b|$HOME|*||"


@pytest.mark.parametrize("isolated", [False, True])
async def test_a_program_sees_no_module_of_the_guest_and_may_use_any_name_for_its_own(box: Box, isolated: bool) -> None:
    code = (
        "import sys\n"
        "for name in ('guest', 'frames', 'limits', 'files', 'child'):\n"
        "    with open(name + '.py', 'w') as file: file.write('mine = 1')\n"
        "    assert __import__(name).mine == 1\n"
        "ours = [name for name in sys.modules if 'enclave' in name]\n"
        "finders = [finder for finder in sys.meta_path if type(finder).__name__ == 'Bundle']\n"
        "print(ours, finders, sys.argv, [entry for entry in sys.path if not entry.startswith('/')])\n"
    )
    assert printed(await (box.isolated(code) if isolated else box.python(code))) == "[] [] [''] []\n"


@pytest.mark.parametrize(
    ("command", "exit_code", "stderr"),
    [
        (["no-such-program"], 127, "no-such-program: command not found\n"),
        (["/etc/passwd"], 126, "/etc/passwd: Permission denied\n"),
        (["/"], 126, "/: Permission denied\n"),
    ],
)
async def test_a_command_that_cannot_be_started_ends_as_in_a_shell(
    box: Box, command: list[str], exit_code: int, stderr: str
) -> None:
    result = await box.shell(command)
    assert (ended(result).verdict, ended(result).exit_code, text(result.stderr)) == (Verdict.EXITED, exit_code, stderr)


@pytest.mark.parametrize("number", [9, 11, 15, 31])
async def test_a_signal_is_told_as_a_signal_and_the_code_of_a_shell_as_a_code(box: Box, number: int) -> None:
    finished = ended(await box.shell(f"kill -{number} $$"))
    assert (finished.verdict, finished.exit_code, finished.signal) == (Verdict.SIGNALED, None, number)
    finished = ended(await box.shell(f"sh -c 'kill -{number} $$' 2>/dev/null; exit $?"))
    assert (finished.verdict, finished.exit_code, finished.signal) == (Verdict.EXITED, 128 + number, None)


async def test_signals_have_their_default_meaning_for_commands(box: Box) -> None:
    assert printed(await box.shell("yes | head -1; echo ${PIPESTATUS[0]}")) == f"y\n{128 + 13}\n"
    assert ended(await box.shell("kill -INT $$")).signal == 2


async def test_an_isolated_program_shares_nothing_with_the_context(box: Box) -> None:
    await box.python("x = 1")
    result = await box.isolated("print('x' in globals(), __name__)\ny = 2")
    assert printed(result) == "False __main__\n"
    assert ended(result).attested is True
    assert ended(result).state_preserved is None
    assert printed(await box.python("print(x, 'y' in globals())")) == "1 False\n"


@pytest.mark.parametrize(
    ("code", "verdict", "exit_code", "number"),
    [
        ("import sys; sys.exit(3)", Verdict.EXITED, 3, None),
        ("1/0", Verdict.EXCEPTION, 1, None),
        ("import os; os._exit(9)", Verdict.EXITED, 9, None),
        ("import os; os.abort()", Verdict.SIGNALED, None, 6),
        ("import ctypes; ctypes.string_at(0)", Verdict.SIGNALED, None, 11),
        ("def f(): f()\nf()", Verdict.EXCEPTION, 1, None),
        ("import atexit, os\natexit.register(os._exit, 5)", Verdict.EXITED, 5, None),
    ],
)
async def test_the_end_of_an_isolated_program_is_attested(
    box: Box, code: str, verdict: Verdict, exit_code: int | None, number: int | None
) -> None:
    finished = ended(await box.isolated(code))
    assert finished.attested is True
    assert (finished.verdict, finished.exit_code, finished.signal) == (verdict, exit_code, number)
    assert printed(await box.isolated("print('next')")) == "next\n"


async def test_an_isolated_program_ends_as_an_interpreter_ends(box: Box) -> None:
    code = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'at exit')\n"
        "go = threading.Event()\n"
        "def late():\n"
        "    go.wait()\n"
        "    print('thread')\n"
        "threading.Thread(target=late).start()\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "threading.Timer(0.01, go.set).start()\n"
        "class Last:\n"
        "    def __del__(self): print('collected')\n"
        "last = Last()\n"
        "left_open = open('left_open', 'w')\n"
        "left_open.write('flushed')\n"
        "print('end of source')\n"
    )
    assert printed(await box.isolated(code)).split("\n") == ["end of source", "thread", "at exit", "collected", ""]
    assert printed(await box.shell("cat left_open")) == "flushed"


async def test_a_failing_exit_handler_does_not_cost_what_comes_after_it(box: Box) -> None:
    code = (
        "import atexit, sys\n"
        "left_open = open('left_open', 'w')\n"
        "left_open.write('flushed')\n"
        "atexit.register(sys.exit, 4)\n"
        "atexit.register(lambda: 1/0)\n"
    )
    result = await box.isolated(code)
    assert ended(result).verdict is Verdict.EXITED
    assert "ZeroDivisionError" in text(result.stderr)
    assert printed(await box.shell("cat left_open")) == "flushed"


@pytest.mark.parametrize("what", CHILDREN)
async def test_a_timeout_leaves_no_process(box: Box, what: str) -> None:
    result = await box.shell(CHILDREN[what], timeout_s=0.3)
    finished = ended(result)
    assert (finished.verdict, finished.signal) == (Verdict.TIMEOUT, 9)
    assert finished.message == "timed out after 0.3 seconds"
    assert await box.survivors(result.stdout) == []


@pytest.mark.parametrize("how", ["sh", "setsid sh"], ids=["a child", "a session of its own"])
@pytest.mark.parametrize("orphaned", [True, False])
async def test_the_end_of_a_program_is_the_end_of_its_children(box: Box, how: str, orphaned: bool) -> None:
    child = f"{how} -c 'echo $$ > pid; exec sleep 600' &"
    started = f"({child}) ;" if orphaned else child
    result = await box.shell(f"{started} until [ -s pid ]; do sleep 0.01; done; cat pid; exit 3")
    assert ended(result).exit_code == 3
    assert await box.survivors(result.stdout) == []


async def test_a_fork_bomb_ends_with_its_timeout_and_the_sandbox_goes_on(box: Box) -> None:
    bomb = (
        "import os, time\n"
        "for depth in range(5): os.fork()\n"
        "while True:\n"
        "    if os.fork() == 0: os.setsid()\n"
        "    else: os._exit(0)\n"
    )
    result = await box.isolated("import os\nprint(os.getpid(), flush=True)\n" + bomb, timeout_s=0.3)
    assert ended(result).verdict in (Verdict.TIMEOUT, Verdict.EXITED)
    assert printed(await box.shell("echo alive")) == "alive\n"
    of_users = [process for process in await box.processes() if process["uid"] != 0]
    assert len(of_users) <= 1, of_users  # a child that waits for work


async def test_an_orphan_among_other_programs_dies_when_the_last_of_them_ends(box: Box) -> None:
    witness = await box.open_shell("echo begun; read line; exit 0", stdin=True)
    await first_output(witness)
    orphan = await box.shell("(setsid sh -c 'echo $$; exec sleep 600' >&2 &) ; sleep 0.05")
    assert ended(orphan).exit_code == 0
    await witness.write_stdin(b"\n")
    assert (await witness.ended).exit_code == 0
    assert await box.survivors(orphan.stderr) == []


async def test_a_context_is_interrupted_at_its_timeout_and_keeps_its_variables(box: Box) -> None:
    await box.python("x = 'kept'")
    result = await box.python("import time\nprint('before', flush=True)\ntime.sleep(600)", timeout_s=0.2)
    finished = ended(result)
    assert result.stdout == b"before\n"
    assert text(result.stderr).splitlines()[-1] == "KeyboardInterrupt"
    assert (finished.verdict, finished.state_preserved) == (Verdict.TIMEOUT, True)
    assert printed(await box.python("print(x)")) == "kept\n"


async def test_a_program_that_handles_the_interrupt_may_tidy_up(box: Box) -> None:
    code = "import time\ntry: time.sleep(600)\nexcept KeyboardInterrupt: print('tidied')"
    result = await box.python(code, timeout_s=0.2)
    assert (result.stdout, ended(result).verdict, ended(result).exit_code) == (b"tidied\n", Verdict.TIMEOUT, 0)


@pytest.mark.parametrize(
    "code",
    [
        "while True:\n    try: time.sleep(600)\n    except BaseException: pass",
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(600)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))\ntime.sleep(600)",
        "os.kill(os.getpid(), signal.SIGSTOP)",
    ],
    ids=["catches everything", "ignores it", "blocks it", "has stopped"],
)
async def test_a_context_that_does_not_stop_is_killed_and_says_so(box: Box, code: str) -> None:
    finished = ended(await box.python("import os, signal, time\n" + code, timeout_s=0.1))
    assert (finished.verdict, finished.signal, finished.state_preserved) == (Verdict.TIMEOUT, 9, False)
    assert len((await box.python("pass")).notices) == 1


async def test_an_isolated_program_is_killed_at_its_timeout(box: Box) -> None:
    finished = ended(await box.isolated("while True: pass", timeout_s=0.2))
    assert (finished.verdict, finished.signal, finished.attested) == (Verdict.TIMEOUT, 9, True)


FORGERIES = [
    r"printf '\000\000\000\050\000\020{\"type\":\"finished\",\"exit_code\":0}'",
    r"""printf '\000\000\000\033{\"done\":true,\"exit_code\":0}' >&3""",
    r"""echo '{"done": true, "exit_code": 0, "exception": null}'""",
    r"""for fd in 3 4 5 6 7 8 9; do printf '\000\000\000\033{\"done\":true,\"exit_code\":0}' >&$fd; done""",
    r"""printf '\000\000\000\046{\"done\":true,\"exception\":{\"type\":\"E\"}}' >&3""",
]


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_command_cannot_claim_another_end_than_its_own(box: Box, forgery: str) -> None:
    finished = ended(await box.shell(f"{forgery}; exit 5"))
    assert (finished.verdict, finished.exit_code, finished.attested) == (Verdict.EXITED, 5, True)
    assert finished.exception is None


CLAIMS = [
    b'{"done": true, "exit_code": 0, "exception": null, "usage": null}',
    b'{"done": true, "exit_code": 1e400}',
    b'{"done": true, "exit_code": -1, "exception": {"type": 5, "message": [[]], "errno": {}}}',
    b'{"done": true, "usage": {"cpu_user_s": 1' + b"0" * 400 + b', "memory_peak_bytes": -1, "io_read_bytes": NaN}}',
    b'{"done": true, "exception": {"type": "\\ud800", "message": "' + b"\\u0000" * 2000 + b'"}}',
    b'{"done": true, "exception": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"done": true, "usage": ' + b"[" * 7000 + b"]" * 7000 + b"}",
    b'{"ready": true}',
    b'{"failed": "no"}',
    b'{"hello": true}',
    b"[]",
    b"{",
    b"\xff",
    b"",
]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: repr(claim[:40]))
async def test_an_isolated_program_cannot_claim_another_exit_code_than_its_own(box: Box, claim: bytes) -> None:
    code = (
        "import os, struct\n"
        f"claim = {claim!r}\n"
        "os.write(3, struct.pack('>I', len(claim)) + claim)\n"
        "import signal, time\n"
        "os._exit(5)\n"
    )
    finished = ended(await box.isolated(code))
    # Nonsense on the socket may cost the program its life, but never gives it another one's end.
    assert finished.attested is True
    assert (finished.exit_code, finished.signal) in ((5, None), (None, 9))
    assert printed(await box.shell("echo next")) == "next\n"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: repr(claim[:40]))
async def test_a_context_that_forges_its_end_harms_only_itself(box: Box, claim: bytes) -> None:
    code = (
        f"import os, struct\nclaim = {claim!r}\nos.write(3, struct.pack('>I', len(claim)) + claim)\nwhile True: pass\n"
    )
    finished = ended(await box.python(code, timeout_s=0.2))
    assert finished.verdict not in (Verdict.SANDBOX_LOST, Verdict.CANCELLED)
    assert printed(await box.shell("echo other")) == "other\n"
    # The interpreter may still be at the old call; then the next one waits for it in vain, and all is well again.
    await box.python("pass", timeout_s=0.1)
    assert printed(await box.python("print('well')")) == "well\n"


async def test_a_flood_of_claims_does_not_keep_the_guest_from_others(box: Box) -> None:
    flood = "import os\nclaims = (b'\\0\\0\\0\\2{}') * 5000\nprint(1, flush=True)\nwhile True: os.write(3, claims)"
    flooding = await box.open_python(flood)
    await first_output(flooding)
    assert printed(await box.shell("echo heard")) == "heard\n"
    flooding.cancel("the test")
    assert (await flooding.ended).verdict is Verdict.CANCELLED


async def test_descriptors_sent_to_the_guest_do_not_fill_it(box: Box) -> None:
    code = (
        "import array, os, socket\n"
        "guest = socket.socket(fileno=os.dup(3))\n"
        "fds = array.array('i', [os.open('/dev/null', os.O_RDONLY) for _ in range(100)])\n"
        "for _ in range(50):\n"
        "    try: guest.sendmsg([b'\\0\\0\\0\\2{}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])\n"
        "    except OSError: pass  # so many on their way are too many for the kernel\n"
    )
    before = len(os.listdir(f"/proc/{box.guest_pid()}/fd"))
    assert printed(await box.isolated(code)) == ""
    assert printed(await box.isolated("print(1)")) == "1\n"
    assert len(os.listdir(f"/proc/{box.guest_pid()}/fd")) <= before + 2


@pytest.mark.parametrize("repeat", range(3))
@pytest.mark.parametrize("number", [9, 15, 19], ids=["KILL", "TERM", "STOP"])
async def test_signals_to_everything_do_not_reach_the_guest(box: Box, number: int, repeat: int) -> None:
    await box.python("x = 1")
    await box.shell(f"kill -{number} -1", timeout_s=1)
    assert printed(await box.shell("echo shell")) == "shell\n"
    assert printed(await box.isolated("print('isolated')")) == "isolated\n"
    assert printed(await box.python("print('context')")) == "context\n"


async def test_a_program_that_kills_all_it_can_again_and_again_disturbs_only_its_time(box: Box) -> None:
    killer = await box.open_python(
        "import os, time\nprint(1, flush=True)\nwhile True:\n    try: os.kill(-1, 9)\n    except OSError: pass",
        isolated=True,
        timeout_s=0.5,
    )
    await first_output(killer)
    assert (await killer.ended).verdict is Verdict.TIMEOUT
    for _ in range(5):
        assert printed(await box.isolated("print('after')")) == "after\n"


async def test_the_guest_cannot_be_signalled_traced_or_looked_into(box: Box) -> None:
    code = (
        "import ctypes, os, signal\n"
        "def refused(act):\n"
        "    try: act()\n"
        "    except OSError as error: return error.errno in (1, 13)\n"
        "def trace():\n"
        "    if ctypes.CDLL(None, use_errno=True).ptrace(16, 1, 0, 0) != 0:\n"
        "        raise OSError(ctypes.get_errno(), 'ptrace')\n"
        "acts = [lambda: os.kill(1, 9), lambda: os.kill(1, 0), lambda: open('/proc/1/mem'), trace,\n"
        "        lambda: os.listdir('/proc/1/fd'), lambda: open('/proc/1/environ').read(), lambda: os.setuid(0)]\n"
        "print([refused(act) for act in acts])\n"
    )
    assert printed(await box.isolated(code)) == f"{[True] * 7}\n"


async def test_a_program_has_the_environment_that_was_asked_for_and_no_other(lab: Laboratory) -> None:
    box = await lab.box(env_vars={"GREETING": "hello", "LANG": "C"})
    names = ["HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "GREETING"]
    code = f"import json, os\nprint(json.dumps([os.environ[name] for name in {names}] + sorted(os.environ)))"
    for run in (box.python, box.isolated):
        found = json.loads(printed(await run(code)))
        assert found[1:6] == ["sandbox", "sandbox", "C", "/tmp", "hello"]
        assert found[6:] == sorted([*names, "PATH"])
    exported = printed(await box.shell("env | cut -d= -f1 | sort | tr '\\n' ' '"))
    assert sorted(exported.split()) == sorted([*names, "PATH", "PWD", "SHLVL", "_"])


async def test_a_program_has_no_capability_no_descriptor_and_limits(box: Box) -> None:
    code = (
        "import json, os, resource\n"
        "status = dict(line.split(':', 1) for line in open('/proc/self/status'))\n"
        "print(json.dumps({\n"
        "    'capabilities': [int(status[n], 16) for n in ('CapInh', 'CapPrm', 'CapEff', 'CapAmb')],\n"
        "    'no_new_privileges': status['NoNewPrivs'].strip(),\n"
        "    'groups': os.getgroups(), 'umask': os.umask(0), 'session': os.getsid(0) == os.getpid(),\n"
        "    'ids': [*os.getresuid(), *os.getresgid()], 'oom': open('/proc/self/oom_score_adj').read().strip(),\n"
        "    'core': resource.getrlimit(resource.RLIMIT_CORE), 'files': resource.getrlimit(resource.RLIMIT_NOFILE),\n"
        "}))\n"
    )
    found = json.loads(printed(await box.isolated(code)))
    assert found["ids"] == [box.record.uid] * 6
    assert found["capabilities"] == [0, 0, 0, 0]
    assert found["umask"] == 0o077
    assert found["session"] is True
    assert found["core"] == [0, 0]
    assert found["files"] == [1024, 1024]
    assert (found["groups"], found["no_new_privileges"], found["oom"]) == ([], "1", "1000")
    assert printed(await box.shell("ls /proc/self/fd | wc -l")) == "4\n"  # three, and the one that ls looks with
    assert printed(await box.isolated("import os; print(sorted(os.listdir('/proc/self/fd')))")) == (
        "['0', '1', '2', '3', '4']\n"  # and the guest's socket, which says nothing that is believed
    )


async def test_file_size_has_a_limit_that_is_a_verdict(lab: Laboratory) -> None:
    box = await lab.box(working_dir_size_bytes=2**20, tmp_size_bytes=2**20)
    finished = ended(await box.shell("exec head -c 2M /dev/zero > large"))
    assert finished.verdict is Verdict.DISK_LIMIT
    result = await box.python("open('large', 'wb').write(bytes(2**21))")
    assert ended(result).verdict is Verdict.EXCEPTION
    assert "File too large" in ended(result).message


async def test_resources_are_counted(box: Box) -> None:
    finished = ended(await box.isolated("x = bytearray(50_000_000)\nfor _ in range(10**6): pass"))
    assert finished.usage.memory_peak_bytes > 50_000_000
    assert finished.usage.cpu_user_s > 0
    finished = ended(await box.python("for _ in range(10**6): pass"))
    assert finished.usage.cpu_user_s > 0
    phases = finished.phases
    assert phases.running_s > 0
    assert min(phases.queued_s, phases.starting_s, phases.draining_s) >= 0


@pytest.mark.parametrize("kind", ["context", "isolated", "command"])
async def test_a_job_whose_process_was_killed_before_it_began_is_given_to_another(box: Box, kind: str) -> None:
    if kind == "context":
        await box.python("x = 1")
    await until(lambda: len(box.children_of_guest()) == (3 if kind == "context" else 2))
    template, *waiting = box.children_of_guest()
    os.kill(box.guest_pid(), signal.SIGSTOP)  # so that the job comes first and then the news of the deaths
    running = {
        "context": box.open_python("print('ran')"),
        "isolated": box.open_python("print('ran')", isolated=True),
        "command": box.open_shell("echo ran"),
    }
    execution = await running.pop(kind)
    for other in running.values():
        other.close()
    for pid in waiting:
        os.kill(pid, signal.SIGKILL)
    os.kill(box.guest_pid(), signal.SIGCONT)
    result = await execution.collect()
    assert printed(result) == "ran\n"
    assert len(result.notices) == (1 if kind == "context" else 0)
    assert template in box.children_of_guest()


async def test_a_template_that_was_killed_is_replaced(box: Box) -> None:
    await until(lambda: len(box.children_of_guest()) == 2)
    template, *_ = box.children_of_guest()
    os.kill(template, signal.SIGKILL)
    for _ in range(3):
        assert printed(await box.isolated("print('ran')")) == "ran\n"
    assert template not in box.children_of_guest()


async def test_a_guest_without_descriptors_refuses_and_goes_on(box: Box) -> None:
    running = await box.open_shell("echo begun; read line; echo $line", stdin=True)
    await first_output(running)
    await until(lambda: len(box.children_of_guest()) == 3)
    limits = resource.prlimit(box.guest_pid(), resource.RLIMIT_NOFILE)
    in_use = len(os.listdir(f"/proc/{box.guest_pid()}/fd"))
    resource.prlimit(box.guest_pid(), resource.RLIMIT_NOFILE, (in_use, limits[1]))
    for _ in range(3):
        with pytest.raises(LimitReached):
            await box.shell("true")
    resource.prlimit(box.guest_pid(), resource.RLIMIT_NOFILE, limits)
    await running.write_stdin(b"end\n")
    assert (await follow(running)).stdout == b"begun\nend\n"
    assert printed(await box.shell("echo next")) == "next\n"
