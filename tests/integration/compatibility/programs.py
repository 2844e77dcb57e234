"""Ordinary programs, and what they print. None of them may notice that it runs in a sandbox."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """A program with its output."""

    code: str
    output: str


PYTHON = {
    "threads": Program(
        """
import threading
found = []
threads = [threading.Thread(target=found.append, args=(n,)) for n in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(found))
""",
        "[0, 1, 2, 3, 4, 5, 6, 7]\n",
    ),
    "a pool of threads": Program(
        """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool: print(list(pool.map(lambda n: n * n, range(5))))
""",
        "[0, 1, 4, 9, 16]\n",
    ),
    "multiprocessing with fork": Program(
        """
import multiprocessing
with multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-1, -2, -3]))
""",
        "[1, 2, 3]\n",
    ),
    "multiprocessing with spawn": Program(
        """
import multiprocessing
if __name__ == '__main__':
    with multiprocessing.get_context('spawn').Pool(2) as pool: print(pool.map(abs, [-1, -2, -3]))
""",
        "[1, 2, 3]\n",
    ),
    "queues, locks and shared memory of processes": Program(
        """
import multiprocessing
from multiprocessing import shared_memory
fork = multiprocessing.get_context('fork')
def work(queue, lock, name):
    part = shared_memory.SharedMemory(name)
    with lock: part.buf[0] += 1
    part.close()
    queue.put('done')
queue, lock = fork.Queue(), fork.Lock()
part = shared_memory.SharedMemory(create=True, size=16)
workers = [fork.Process(target=work, args=(queue, lock, part.name)) for _ in range(3)]
for worker in workers: worker.start()
print([queue.get(timeout=20) for _ in workers])
for worker in workers: worker.join()
print(part.buf[0], [worker.exitcode for worker in workers])
part.close()
part.unlink()
""",
        "['done', 'done', 'done']\n3 [0, 0, 0]\n",
    ),
    "asyncio with a server, a client and a child process": Program(
        """
import asyncio
async def main():
    async def answer(reader, writer):
        writer.write((await reader.readline()).upper())
        writer.close()
    server = await asyncio.start_server(answer, '127.0.0.1', 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b'hello\\n')
    print((await reader.read()).decode().strip())
    writer.close()
    server.close()
    child = await asyncio.create_subprocess_exec('cat', stdin=-1, stdout=-1)
    print((await child.communicate(b'piped'))[0].decode(), child.returncode)
asyncio.run(main())
""",
        "HELLO\npiped 0\n",
    ),
    "subprocess with a pipeline and a timeout": Program(
        """
import subprocess
print(subprocess.run('printf "b\\\\na\\\\n" | sort', shell=True, capture_output=True, text=True).stdout.split())
try: subprocess.run(['sleep', '60'], timeout=0.1)
except subprocess.TimeoutExpired as error: print(type(error).__name__)
""",
        "['a', 'b']\nTimeoutExpired\n",
    ),
    "sqlite on disk, in WAL mode": Program(
        """
import sqlite3
import tempfile
database = sqlite3.connect(tempfile.mkdtemp() + '/numbers.db')
print(database.execute('PRAGMA journal_mode=WAL').fetchone()[0])
database.execute('CREATE TABLE numbers (n INTEGER)')
with database: database.executemany('INSERT INTO numbers VALUES (?)', [(n,) for n in range(100)])
print(database.execute('SELECT sum(n) FROM numbers').fetchone()[0])
""",
        "wal\n4950\n",
    ),
    "temporary files and directories": Program(
        """
import os, tempfile
with tempfile.TemporaryDirectory() as folder:
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(b'x'); file.flush(); print(os.stat(file.name).st_size)
with tempfile.TemporaryFile() as file: file.write(b'y'); print(file.tell())
""",
        "1\n1\n",
    ),
    "who am I": Program(
        "import getpass, os, pathlib, pwd\n"
        "print(getpass.getuser(), pathlib.Path.home() == pathlib.Path.cwd(), pwd.getpwuid(os.getuid()).pw_name)",
        "sandbox True sandbox\n",
    ),
    "signals and alarms": Program(
        """
import signal
def ring(number, frame): print(signal.Signals(number).name)
signal.signal(signal.SIGALRM, ring)
signal.setitimer(signal.ITIMER_REAL, 0.01)
signal.pause()
""",
        "SIGALRM\n",
    ),
    "files mapped into memory": Program(
        """
import mmap
with open('mapped', 'wb+') as file:
    file.truncate(8192)
    with mmap.mmap(file.fileno(), 0) as area: area[4096:4101] = b'hello'
print(open('mapped', 'rb').read()[4096:4101], mmap.mmap(-1, 4096)[:2])
""",
        "b'hello' b'\\x00\\x00'\n",
    ),
    "epoll, eventfd, inotify and memfd": Program(
        """
import ctypes, os, select
poll, event = select.epoll(), os.eventfd(0)
poll.register(event, select.EPOLLIN)
os.eventfd_write(event, 3)
print(len(poll.poll(1)), os.eventfd_read(event))
print(ctypes.CDLL(None).inotify_init() > 2, os.memfd_create('m') > 2)
""",
        "1 3\nTrue True\n",
    ),
    "clocks, random numbers and the count of processors": Program(
        "import os, secrets, time, uuid\n"
        "print(time.time() > 1e9, len(secrets.token_bytes(16)), uuid.uuid4().version, os.cpu_count() > 0)",
        "True 16 4 True\n",
    ),
    "compression and hashes": Program(
        "import bz2, gzip, hashlib, lzma, zlib\n"
        "data = b'data' * 1000\n"
        "print(all(m.decompress(m.compress(data)) == data for m in (bz2, gzip, lzma, zlib)))\n"
        "print(hashlib.sha256(data).hexdigest()[:8], hashlib.scrypt(b'p', salt=b's', n=2, r=8, p=1).hex()[:8])",
        "True\n970d4964 a707fd18\n",
    ),
    "a module written a moment ago": Program(
        "open('fresh.py', 'w').write('value = 6 * 7')\nimport fresh\nprint(fresh.value)",
        "42\n",
    ),
    "a foreign function": Program(
        "import ctypes\nprint(ctypes.CDLL(None).abs(-5))\n"
        "@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)\ndef twice(n): return 2 * n\nprint(twice(21))",
        "5\n42\n",
    ),
    "a lock on a file": Program(
        "import fcntl\nfile = open('lock', 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "print('held')",
        "held\n",
    ),
    "pseudo-terminals": Program(
        "import os, pty\nmain, other = pty.openpty()\nos.write(main, b'line\\n')\n"
        "print(os.read(other, 10), os.isatty(other))",
        "b'line\\n' True\n",
    ),
    "a web server for oneself": Program(
        """
import http.server, threading, urllib.request
class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words): pass
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'served')
server = http.server.ThreadingHTTPServer(('localhost', 0), Quiet)
threading.Thread(target=server.serve_forever, daemon=True).start()
print(urllib.request.urlopen('http://localhost:%d/' % server.server_port, timeout=20).read())
server.shutdown()
""",
        "b'served'\n",
    ),
    "resource limits of one's own": Program(
        "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0)",
        "(64, 64) True\n",
    ),
}

SHELL = {
    "a pipeline with job control": Program(
        "sleep 60 & kill $! ; wait $! ; echo $? ; seq 1 100 | grep -c 7", "143\n19\n"
    ),
    "a background program stopped and continued": Program(
        "sleep 60 & kill -STOP $!; kill -CONT $!; kill -KILL $!; wait $! 2>/dev/null; echo $?", "137\n"
    ),
    "a script that is executable": Program(
        "printf '#!/bin/sh\\necho ran \"$1\"\\n' > s; chmod +x s; ./s well", "ran well\n"
    ),
    "an archive packed and unpacked": Program(
        "mkdir d; echo x > d/f; ln -s f d/l; tar cf a.tar d; rm -r d; tar xf a.tar; cat d/l", "x\n"
    ),
    "a temporary directory": Program('t=$(mktemp -d); echo y > "$t/f"; cat "$t/f"; rm -r "$t"', "y\n"),
    "process substitution and here documents": Program(
        "bash -c 'diff <(printf a) <(printf a) && cat <<< here'", "here\n"
    ),
    "a virtual environment": Program(
        "python3 -m venv --without-pip v && v/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'",
        "True\n",
    ),
    "xargs in parallel": Program("seq 1 20 | xargs -P 4 -n 1 expr 1 + | sort -n | tail -n 1", "21\n"),
    "ps, top and the system's own view": Program(
        "test -r /proc/meminfo && test -r /proc/cpuinfo && test -d /proc/self/fd && uname -s", "Linux\n"
    ),
}
