"""The interpreter of a program or context, and what it shows of an exception."""

from __future__ import annotations

import collections
import os
import signal
import sys
from time import monotonic  # the program may put something else in its place

from .claims import cut
from .imports import ImportRules
from .libc import PR_SET_DUMPABLE, prctl
from .limits import MAX_EXCEPTION_NAME_BYTES, MAX_EXCEPTION_TEXT_BYTES, SOURCES_BYTES, SOURCES_KEPT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, Callable, Deque, Dict, List, Optional, Tuple

_OURS = os.path.dirname(__file__) + "/"  # where the files of all our modules seem to be


def text_of(error: BaseException) -> str:
    """The text of an exception, whatever its class does to prevent that."""
    try:
        text = str(error)
    except BaseException:  # user code may raise anything here
        text = "<exception without a text>"
    return cut(text, MAX_EXCEPTION_TEXT_BYTES)


def is_usable(stream: Any) -> bool:
    """Whether a stream is there and open, as far as what the program put in its place lets one know."""
    try:
        return stream is not None and not getattr(stream, "closed", False)
    except BaseException:  # user code may raise anything here
        return False


def is_ours(frame: FrameType) -> bool:
    """Whether a frame runs code of one of our modules."""
    return frame.f_code.co_filename.startswith(_OURS)


def hide_ours(error: BaseException) -> None:
    """Takes our own frames out of the tracebacks of an exception and of those that led to it."""
    waiting: List[Optional[BaseException]] = [error]
    seen = set()
    while waiting:
        each = waiting.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        trace = each.__traceback__
        while trace is not None and is_ours(trace.tb_frame):
            trace = trace.tb_next
        each.__traceback__ = trace
        while trace is not None:
            while trace.tb_next is not None and is_ours(trace.tb_next.tb_frame):
                trace.tb_next = trace.tb_next.tb_next  # our signal handler, or a look at what is imported
            trace = trace.tb_next
        waiting += [each.__cause__, each.__context__]
        waiting += getattr(each, "exceptions", ())


class Interpreter:
    """Runs source as a script would, again and again, in one namespace."""

    def __init__(self, working_dir: str) -> None:
        import linecache
        import resource
        import traceback
        import types

        # Taken now: later the program may have put anything in their place.
        self.linecache, self.resource, self.traceback = linecache, resource, traceback
        main = types.ModuleType("__main__")
        main.__dict__["__builtins__"] = sys.modules["builtins"]
        sys.modules["__main__"] = main
        self.namespace = main.__dict__
        self.calls = 0
        self.sources: Deque[Tuple[str, int]] = collections.deque()
        self.source_bytes = 0
        self.running = False
        self.transfer = 0, 0  # bytes read and written up to now
        self.import_rules: Optional[ImportRules] = None
        self.interrupted_at = 0.0  # when an interrupt came between two calls, by the monotonic clock
        self.working_dir = working_dir
        version = "python%d.%d" % sys.version_info[:2]
        sys.path += [working_dir, os.path.join(working_dir, ".local", "lib", version, "site-packages")]
        signal.signal(signal.SIGINT, self.on_interrupt)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # still the one of the start
        prctl(PR_SET_DUMPABLE, 1)  # PR_SET_DUMPABLE: the change of user cleared it, and /proc/self would be closed
        self.transferred()

    def on_interrupt(self, number: int, frame: Any) -> None:
        """Interrupts user code, and nothing else; notes when it came too early or too late for that."""
        if self.running:
            raise KeyboardInterrupt
        self.interrupted_at = monotonic()

    def open_streams(self) -> None:
        """Gives the program usable standard streams, whatever the call before did to them."""
        # Stubs say that the second name never changes.
        sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)  # type: ignore[misc]
        for name, fd, errors in (("stdout", 1, "surrogateescape"), ("stderr", 2, "backslashreplace")):
            stream = getattr(sys, "__%s__" % name, None)
            if not is_usable(stream):
                stream = open(fd, "w", buffering=1, encoding="utf-8", errors=errors, closefd=False)
                setattr(sys, "__%s__" % name, stream)
            if not is_usable(getattr(sys, name, None)):
                setattr(sys, name, stream)

    def remember_source(self, name: str, code: str) -> None:
        """Lets tracebacks show the source lines of the latest calls."""
        self.linecache.cache[name] = (len(code), None, [line + "\n" for line in code.split("\n")], name)
        self.sources.append((name, len(code)))
        self.source_bytes += len(code)
        while len(self.sources) > 1 and (self.source_bytes > SOURCES_BYTES or len(self.sources) > SOURCES_KEPT):
            oldest, size = self.sources.popleft()
            self.source_bytes -= size
            self.linecache.cache.pop(oldest, None)

    def call(self, code: str, meet_signals: Callable[[], None]) -> Dict[str, Any]:
        """Runs source and tells how it went: exit code, exception, resources.

        ``meet_signals`` is called first, when an interrupt can be raised as if the source had been running.
        """
        self.calls += 1
        name = "<call %d>" % self.calls
        self.remember_source(name, code)
        self.open_streams()
        before = self.spent()
        exit_code, exception = 0, None
        try:
            self.running = True
            try:
                meet_signals()
                exec(compile(code, name, "exec", dont_inherit=True), self.namespace)
            finally:
                self.running = False
        except SystemExit as stop:
            exit_code = self.exit_code_of(stop)
        except BaseException as error:
            exit_code = 1
            exception = {"type": cut(type(error).__name__, MAX_EXCEPTION_NAME_BYTES), "message": text_of(error)}
            self.show(error)
        self.running = False  # an interrupt may have come just before this was said above
        self.flush()
        after = self.spent()
        usage = {
            "cpu_user_s": sum(a.ru_utime - b.ru_utime for a, b in zip(after, before)),
            "cpu_system_s": sum(a.ru_stime - b.ru_stime for a, b in zip(after, before)),
            "memory_peak_bytes": max(a.ru_maxrss for a in after) * 1024,
        }
        usage.update(self.transferred())
        return {"done": True, "call": self.calls, "exit_code": exit_code, "exception": exception, "usage": usage}

    def restrict(self, rules: Optional[Dict[str, Any]]) -> None:
        """Has the next call import only what these rules allow; None: everything."""
        if rules is None and self.import_rules is None:
            return
        if self.import_rules is None:
            self.import_rules = ImportRules(self.namespace, self.working_dir)
        self.import_rules.set(rules)

    def spent(self) -> List[Any]:
        """The resources used up to now, by this process and by its children."""
        resource = self.resource
        return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]

    def transferred(self) -> Dict[str, int]:
        """The bytes read and written since it was asked last, by this process and by its children that have ended."""
        before = self.transfer
        try:
            fd = os.open("/proc/self/io", os.O_RDONLY)
            try:
                words = os.read(fd, 512).split()
            finally:
                os.close(fd)
            self.transfer = int(words[1]), int(words[3])
        except (OSError, ValueError, IndexError):  # a kernel that does not count them, or a program without descriptors
            pass
        return {"io_read_bytes": self.transfer[0] - before[0], "io_write_bytes": self.transfer[1] - before[1]}

    def spare_files(self, count: int) -> None:
        """Keeps descriptors back for the time between calls, however many files the program holds open."""
        _, most = self.resource.getrlimit(self.resource.RLIMIT_NOFILE)
        try:
            self.resource.setrlimit(self.resource.RLIMIT_NOFILE, (most - count, most))
        except (OSError, ValueError):  # the program lowered its limit to next to nothing
            pass

    def exit_code_of(self, stop: SystemExit) -> int:
        """What the interpreter makes of sys.exit's argument."""
        if stop.code is None:
            return 0
        if isinstance(stop.code, int):
            return stop.code & 0xFF
        try:
            print(stop.code, file=sys.stderr)
        except BaseException:  # as the interpreter: whatever happens here, the code is 1
            pass
        return 1

    def show(self, error: BaseException) -> None:
        """Prints a traceback as the interpreter does, without our own frames."""
        try:
            hide_ours(error)
            if sys.excepthook is sys.__excepthook__:  # which does not know the sources that linecache has
                self.traceback.print_exception(type(error), error, error.__traceback__)
            else:
                sys.excepthook(type(error), error, error.__traceback__)
        except BaseException:  # a hook of user code, or no memory for a traceback
            try:
                os.write(2, ("%s: %s\n" % (type(error).__name__, text_of(error))).encode("utf-8", "replace"))
            except OSError:
                pass

    def flush(self) -> None:
        """Pushes out what is buffered in any stream that the program may have used."""
        for name in ("stdout", "stderr", "__stdout__", "__stderr__"):
            try:
                getattr(sys, name).flush()
            except BaseException:  # closed, gone or hostile: the bytes it has are its own affair
                pass
