"""python_executor in the sandbox's context: what lives from call to call, and what a call can do to it."""

from __future__ import annotations

import pytest

from enclaved.model import NoticeKind, RunResult, Verdict
from tests.service.guest.laboratory import Box, ended, follow, printed, text

TEXT_OF_RESET = "this ran in a fresh interpreter, since the earlier one had died; its variables are gone"


def was_reset(result: RunResult) -> bool:
    return [(notice.kind, notice.message) for notice in result.notices] == [(NoticeKind.CONTEXT_RESET, TEXT_OF_RESET)]


async def test_variables_functions_and_imports_live_from_call_to_call(box: Box) -> None:
    assert printed(await box.python("import math\nx = 40\ndef add(n): return x + n")) == ""
    result = await box.python("x += 1\nprint(add(1), math.floor(2.5), __name__)")
    assert printed(result) == "42 2 __main__\n"
    assert ended(result).state_preserved is True
    assert ended(result).attested is False  # it lives on, so that it returned is its own claim
    assert result.notices == ()


async def test_nothing_is_echoed(box: Box) -> None:
    assert printed(await box.python("1 + 1\n'text'")) == ""


async def test_a_class_can_be_pickled_and_a_function_looked_at_in_later_calls(box: Box) -> None:
    await box.python("class Point:\n    where = 'here'\ndef f():\n    return 1")
    code = "import inspect, pickle\nprint(pickle.loads(pickle.dumps(Point())).where)\nprint(inspect.getsource(f))"
    assert printed(await box.python(code)) == "here\ndef f():\n    return 1\n\n"


async def test_a_traceback_is_the_interpreters_own_with_source_lines_and_without_our_frames(box: Box) -> None:
    await box.python("def divide(a, b):\n    return a / b")
    result = await box.python("def work():\n    divide(1, 0)\n\nwork()")
    lines = [line for line in text(result.stderr).splitlines() if set(line) - set(" ^~")]
    assert lines == [
        "Traceback (most recent call last):",
        '  File "<call 2>", line 4, in <module>',
        "    work()",
        '  File "<call 2>", line 2, in work',
        "    divide(1, 0)",
        '  File "<call 1>", line 2, in divide',
        "    return a / b",
        "ZeroDivisionError: division by zero",
    ]
    finished = ended(result)
    assert finished.verdict is Verdict.EXCEPTION
    assert finished.exit_code == 1
    assert finished.message == "ZeroDivisionError: division by zero"
    assert finished.state_preserved is True


async def test_a_syntax_error_is_shown_where_it_is(box: Box) -> None:
    result = await box.python('print("Missing quote')
    lines = text(result.stderr).splitlines()
    assert lines[:2] == ['  File "<call 1>", line 1', '    print("Missing quote']
    assert lines[-1].startswith("SyntaxError: ")
    assert ended(result).verdict is Verdict.EXCEPTION
    assert printed(await box.python("print(1)")) == "1\n"


async def test_chained_exceptions_show_no_frame_of_ours(box: Box) -> None:
    code = (
        "import os, signal\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while True: pass\n"
        "except KeyboardInterrupt:\n"
        "    raise RuntimeError('on top')\n"
    )
    result = await box.python(code)
    shown = text(result.stderr)
    assert "guest" not in shown
    assert "on_interrupt" not in shown
    assert "KeyboardInterrupt" in shown
    assert "During handling of the above exception, another exception occurred:" in shown
    assert shown.endswith("RuntimeError: on top\n")


@pytest.mark.parametrize(
    ("code", "exit_code", "stderr"),
    [
        ("import sys; sys.exit()", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit(256 + 7)", 7, ""),
        ("import sys; sys.exit(-1)", 255, ""),
        ("import sys; sys.exit('a last word')", 1, "a last word\n"),
        ("raise SystemExit", 0, ""),
        ("exit(4)", 4, ""),
    ],
)
async def test_sys_exit_ends_the_call_and_not_the_context(box: Box, code: str, exit_code: int, stderr: str) -> None:
    await box.python("x = 'kept'")
    result = await box.python(code)
    finished = ended(result)
    assert (finished.verdict, finished.exit_code, text(result.stderr)) == (Verdict.EXITED, exit_code, stderr)
    assert finished.state_preserved is True
    assert printed(await box.python("print(x)")) == "kept\n"


FATAL = {
    "os._exit": ("import os; os._exit(7)", Verdict.EXITED, 7, None),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", Verdict.SIGNALED, None, 11),
    "an abort": ("import os; os.abort()", Verdict.SIGNALED, None, 6),
    "killing itself": ("import os; os.kill(os.getpid(), 9)", Verdict.SIGNALED, None, 9),
    "terminating itself": ("import os; os.kill(os.getpid(), 15)", Verdict.SIGNALED, None, 15),
    "an alarm": (
        "import signal, time; signal.setitimer(signal.ITIMER_REAL, .01); time.sleep(600)",
        "SIGNALED",
        None,
        14,
    ),
    "becoming another program": (
        "import os; os.execv('/bin/sh', ['sh', '-c', 'echo as sh; exit 9'])",
        Verdict.EXITED,
        9,
        None,
    ),
    "closing every descriptor": ("import os; os.closerange(0, 4096)", Verdict.EXITED, 0, None),
    "closing the guest's socket, then failing": ("import os; os.close(3); 1/0", Verdict.EXITED, 1, None),
}


@pytest.mark.parametrize("how", FATAL)
async def test_the_end_of_a_context_is_told_and_the_next_call_says_that_it_is_fresh(box: Box, how: str) -> None:
    code, verdict, exit_code, signal = FATAL[how]
    await box.python("x = 1")
    finished = ended(await box.python(code))
    assert (finished.verdict, finished.exit_code, finished.signal) == (verdict, exit_code, signal)
    assert finished.attested is True
    assert finished.state_preserved is False

    result = await box.python("print('x' in globals())")
    assert printed(result) == "False\n"
    assert was_reset(result)
    assert (await box.python("pass")).notices == ()


HARMLESS = {
    "closing standard output": "import os; os.close(1)",
    "closing standard input": "import os; os.close(0)",
    "closing both outputs": "import os; os.close(1); os.close(2)",
    "closing all three": "import os; os.closerange(0, 3)",
    "closing the stream objects": "import sys; sys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
    "deleting the stream objects": "import sys; del sys.stdout, sys.stderr, sys.stdin",
    "deleting the hidden stream objects": "import sys; del sys.__stdout__, sys.__stderr__, sys.__stdin__",
    "taking the streams away": "import sys; sys.stdout = sys.stderr = sys.stdin = None",
    "streams that fail at every touch": (
        "import sys\nclass Bad:\n    def __getattribute__(self, name): raise SystemExit(0)\n"
        "sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = Bad()"
    ),
    "deep recursion": "def f(): return f()\ntry: f()\nexcept RecursionError: pass",
    "threads that go on": "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()",
    "daemon threads that write": (
        "import threading\n"
        "def noise():\n"
        "    while True: print('noise' * 1000)\n"
        "threading.Thread(target=noise, daemon=True).start()"
    ),
    "leaving a signal ignored": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "changing the directory": "import os; os.chdir('/')",
    "changing the environment": "import os; os.environ.clear()",
    "replacing modules": (
        "import sys\nfor name in ('fcntl', 'json', 'linecache', 'resource', 'traceback'): sys.modules[name] = None"
    ),
    "removing the linecache": "import linecache; linecache.cache.clear()",
    "holding every descriptor": (
        "held = []\ntry:\n    while True: held.append(open('/dev/null'))\nexcept OSError: pass"
    ),
    "a fork that comes back": "import os\nif os.fork(): os.wait()",
    "a fork that fails": "import os\nif os.fork(): os.wait()\nelse: raise SystemExit(5)",
    "a fork that outlives the call": "import os, time\nif not os.fork(): time.sleep(600)",
    "garbage on the guest's socket": "import socket; socket.socket(fileno=3).detach()",
}


@pytest.mark.parametrize("what", HARMLESS)
async def test_a_context_survives(box: Box, what: str) -> None:
    await box.python("x = 'kept'")
    first = await box.python(HARMLESS[what])
    assert ended(first).verdict is Verdict.EXITED, first
    assert ended(first).state_preserved is True
    # Threads of the call before may write too, at any moment and without end: what is printed may be lost among it.
    again = await follow(await box.open_python("import sys\nsys.stdout = sys.__stdout__\nassert x == 'kept'"))
    assert again.finished is not None
    assert (again.finished.verdict, again.finished.exit_code) == (Verdict.EXITED, 0), again.stderr
    assert {notice.kind for notice in again.notices} <= {NoticeKind.GAP}


async def test_a_program_that_replaces_its_output_keeps_it_replaced(box: Box) -> None:
    """It is a variable like any other."""
    await box.python("import io, sys\nsys.stdout = io.StringIO()\nprint('inside')")
    result = await box.python("inside = sys.stdout.getvalue()\nsys.stdout = sys.__stdout__\nprint(repr(inside))")
    assert printed(result) == "'inside\\n'\n"


async def test_atexit_waits_for_the_end_of_a_context(box: Box) -> None:
    assert printed(await box.python("import atexit\natexit.register(print, 'at exit')\nprint('now')")) == "now\n"
    assert printed(await box.python("print('later')")) == "later\n"


async def test_what_a_thread_writes_between_calls_opens_the_next_one(box: Box) -> None:
    code = (
        "import os, threading\n"
        "go = threading.Event()\n"
        "done = threading.Event()\n"
        "def late():\n"
        "    go.wait()\n"
        "    os.write(1, b'late')\n"
        "    done.set()\n"
        "threading.Thread(target=late, daemon=True).start()\n"
        "threading.Timer(0.01, go.set).start()\n"
    )
    assert printed(await box.python(code)) == ""
    result = await box.python("done.wait()\nprint('mine')")
    # Where the thread came first its words are late; where the call came first they are part of it.
    assert printed(result) == "latemine\n"


async def test_a_child_that_a_call_started_dies_with_the_call(box: Box) -> None:
    result = await box.python(
        "import subprocess\nchild = subprocess.Popen(['sleep', '600'], start_new_session=True)\nprint(child.pid)"
    )
    assert await box.survivors(result.stdout) == []
    assert printed(await box.python("print(child.wait())")) == "-9\n"


async def test_multiprocessing_works_in_a_context(box: Box) -> None:
    code = (
        "import multiprocessing as mp\ndef double(n): return 2 * n\nwith mp.Pool(2) as p: print(p.map(double, [1, 2]))"
    )
    assert printed(await box.python(code)) == "[2, 4]\n"


async def test_source_that_cannot_be_compiled_is_an_exception_of_the_program(box: Box) -> None:
    for code in ("x = 1\0", "(" * 100_000, "x = " + "-" * 100_000 + "1", "\N{SNOWMAN} = 1"):
        finished = ended(await box.python(code))
        assert finished.verdict is Verdict.EXCEPTION or finished.signal == 11  # a compiler may crash
    assert printed(await box.python("print('fine')")) == "fine\n"


async def test_two_calls_at_once_wait_in_line_and_both_end(box: Box) -> None:
    await box.python("order = []")
    first = await box.open_python("order.append(1)\ninput()\norder.append(2)", stdin=True)
    second = await box.open_python("order.append(3)\nprint(order)")
    await first.write_stdin(b"\n")
    assert printed(await second.collect()) == "[1, 2, 3]\n"
    assert printed(await first.collect()) == ""


async def test_a_large_job_arrives_whole(box: Box) -> None:
    blob = "x" * 900_000
    assert printed(await box.python(f"text = {blob!r}\nprint(len(text))")) == "900000\n"


@pytest.mark.parametrize(
    ("text_of_error", "told"),
    [
        ("chr(0xdfff) * 9000", "?" * 4096),
        ("chr(0) * 9000", "\0"),
        ("chr(0x1f40d) * 9000", "\N{SNAKE}"),
        ("'x' * 9000", "x" * 4096),
    ],
)
async def test_the_text_of_an_exception_is_cut_to_what_can_be_told(box: Box, text_of_error: str, told: str) -> None:
    finished = ended(await box.python(f"raise ValueError({text_of_error})"))
    assert finished.verdict is Verdict.EXCEPTION
    assert finished.exception is not None
    assert finished.exception.message.startswith(told)
    assert len(finished.exception.message.encode()) <= 4096
    assert finished.state_preserved is True


async def test_an_exception_that_refuses_to_show_itself_is_one_all_the_same(box: Box) -> None:
    code = "class Odd(Exception):\n    def __str__(self): raise SystemExit\nOdd.__name__ = 'O' * 5000\nraise Odd"
    finished = ended(await box.python(code))
    assert finished.verdict is Verdict.EXCEPTION
    assert finished.exception is not None
    assert (finished.exception.type, finished.exception.message) == ("O" * 256, "<exception without a text>")


async def test_a_hook_for_exceptions_is_asked(box: Box) -> None:
    await box.python("import sys\nsys.excepthook = lambda kind, error, trace: print('hooked', kind.__name__)")
    result = await box.python("1/0")
    assert text(result.stdout) == "hooked ZeroDivisionError\n"
    await box.python("sys.excepthook = lambda *_: undefined")
    result = await box.python("1/0")
    assert text(result.stderr) == "ZeroDivisionError: division by zero\n"
