"""Ordinary code, which must work: a sandbox that forbids everything is no sandbox."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.act import Act
from enclaved.doctor.attacks.base import Attack, Category, Evidence, Judge, Program
from enclaved.doctor.attacks.judges import all_of, as_control, ends, finds, tells


def _control(name: str, sentence: str, source: str, wanted: object, *, in_shell: bool = False) -> Attack:
    right: Judge = ends("EXITED", exit_code=0)
    if not in_shell:
        right = all_of(tells("result", lambda value: value == wanted, f"{wanted!r}"), right)
    return Attack(
        f"control.{name}",
        Category.CONTROLS,
        sentence,
        as_control(right),
        Program(source, is_shell=in_shell, timeout_s=60),
    )


async def _kept(act: Act) -> Evidence:
    await act.run(Program("kept_between_calls = 21\n", isolated=False))
    seen = await act.run(Program("tell('result', kept_between_calls * 2)\n", isolated=False))
    return act.evidence(seen, result=act.told(seen).get("result"))


ATTACKS: Final = (
    _control(
        "ordinary-code",
        "Computes, reads and writes files, and uses what the standard library offers.",
        """
import datetime, decimal, hashlib, random, re, sqlite3, tempfile, zlib
with tempfile.TemporaryDirectory() as directory:
    path = os.path.join(directory, "text")
    with open(path, "w") as file:
        file.write("42")
    database = sqlite3.connect(os.path.join(directory, "database"))
    database.execute("create table t (x)")
    database.execute("insert into t values (?)", (int(open(path).read()),))
    database.commit()
    found = database.execute("select x from t").fetchone()[0]
    database.close()
digest = hashlib.sha256(b"").hexdigest()[:8]
tell("result", [found, digest, str(decimal.Decimal("1.1") + 1), os.getcwd() == os.environ["HOME"]])
""",
        [42, "e3b0c442", "2.1", True],
    ),
    _control(
        "multiprocessing",
        "Uses a pool of processes, a queue and a lock.",
        """
import multiprocessing
def square(number):
    return number * number
if __name__ == "__main__":
    with multiprocessing.Pool(2) as pool:
        squares = pool.map(square, range(5))
    queue = multiprocessing.Queue()
    child = multiprocessing.Process(target=queue.put, args=(7,))
    child.start()
    got = queue.get(timeout=20)
    child.join()
    with multiprocessing.Lock():
        tell("result", [squares, got])
""",
        [[0, 1, 4, 9, 16], 7],
    ),
    _control(
        "threads-and-asyncio",
        "Uses threads, an event loop, and sockets of its own loopback.",
        """
import asyncio, concurrent.futures
async def main():
    async def serve(reader, writer):
        writer.write((await reader.read(10)).upper())
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello")
        writer.write_eof()
        answer = await reader.read()
        writer.close()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        return [answer.decode(), sum(pool.map(abs, range(-3, 3)))]
tell("result", asyncio.run(main()))
""",
        ["HELLO", 9],
    ),
    _control(
        "subprocesses",
        "Runs programs, with pipes between them.",
        """
import subprocess
done = subprocess.run("printf 'b\\\\na\\\\n' | sort | tr a-z A-Z", shell=True, capture_output=True, text=True)
tell("result", [done.stdout.split(), done.returncode])
""",
        [["A", "B"], 0],
    ),
    _control("shell", "Uses a shell.", 'cd /tmp && echo ok > f && test "$(cat f)" = ok && rm f', None, in_shell=True),
    Attack(
        "control.kept-variables",
        Category.CONTROLS,
        "Keeps variables from call to call.",
        as_control(all_of(finds("result", lambda value: value == 42, "42"), ends("EXITED", exit_code=0))),
        act=_kept,
    ),
)
