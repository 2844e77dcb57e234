"""Runs the modules of the guest out of the one file that is installed for a sandbox.

What the compiler leaves in the heap is several MiB, in PID 1 and in the template, for each sandbox. So the file is run
twice: the first run compiles the modules into a memory file and becomes the second one, which loads them from there,
each when it is first imported. The template need not compile again.
"""

from __future__ import annotations

import marshal
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any, Dict, List, NoReturn, Tuple

    Places = Dict[str, Tuple[int, int]]  # offset and size of each module's code

PACKAGE = "_ms_enclave_guest"  # a name that no module of a user has

_F_ADD_SEALS = 1033
_ALL_SEALS = 1 | 2 | 4 | 8  # no other seals, no shorter, no longer, no other content

# Reads this module and the places of the others from the memory file, and goes on with `run`.
_START = (
    "import marshal, os; code, places = marshal.loads(os.pread({fd}, {head_bytes}, 0)); "
    "names = {{'__name__': {name!r}, '__file__': {own_file!r}}}; exec(code, names); "
    "names['run']({file!r}, {fd}, {head_bytes}, places)"
)


class Bundle:
    """Finds and loads the modules of the guest, as an entry of ``sys.meta_path``."""

    def __init__(self, file: str, fd: int, head_bytes: int, places: Places) -> None:
        self.file, self.fd, self.head_bytes, self.places = file, fd, head_bytes, places

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Knows our modules and no other."""
        if name not in self.places:
            return None
        module_spec = type(sys.__spec__)  # importlib.machinery would cost memory in every sandbox
        # We are a loader by what we can do: the class of loaders is in importlib as well.
        return module_spec(name, self, origin=self.file, is_package=name == PACKAGE)  # type: ignore[arg-type]

    def create_module(self, spec: Any) -> None:
        """Leaves that to the interpreter."""

    def exec_module(self, module: ModuleType) -> None:
        """Fills a module with what its code defines."""
        offset, size = self.places[module.__name__]
        code = marshal.loads(os.pread(self.fd, size, self.head_bytes + offset))
        module.__file__ = code.co_filename
        exec(code, module.__dict__)

    def arguments(self) -> List[str]:
        """The arguments that make an interpreter run `main` from the memory file, which it must inherit."""
        own_file = _file_of(self.file, "loader")
        name = PACKAGE + ".loader"
        start = _START.format(fd=self.fd, head_bytes=self.head_bytes, name=name, own_file=own_file, file=self.file)
        return ["-c", start]

    def forget(self) -> None:
        """Leaves no trace for user code. Modules that were loaded work on; no other one can be loaded any more."""
        os.close(self.fd)
        sys.meta_path.remove(self)
        for name in self.places:
            sys.modules.pop(name, None)


def run(file: str, fd: int, head_bytes: int, places: Places) -> None:
    """Starts the program that the arguments name, with modules from the memory file."""
    bundle = Bundle(file, fd, head_bytes, places)
    sys.meta_path.insert(0, bundle)
    name = PACKAGE + ".main"
    __import__(name)
    sys.modules[name].main(sys.argv[1:], bundle)


def become_lean(sources: Dict[str, str], file: str, arguments: List[str]) -> NoReturn:
    """Becomes this program again, from modules that are compiled already."""
    codes = {name: compile(text, _file_of(file, name), "exec", 0, True, 2) for name, text in sources.items()}
    places: Places = {}
    body = b""
    for name, code in codes.items():
        blob = marshal.dumps(code)
        places[PACKAGE if name == "__init__" else PACKAGE + "." + name] = (len(body), len(blob))
        body += blob
    head = marshal.dumps((codes["loader"], places))
    fd = os.memfd_create("guest", os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as memory:
        memory.write(head + body)
    # Templates come from it later: not even where a kernel lets programs open it may it become another.
    import fcntl

    fcntl.fcntl(fd, _F_ADD_SEALS, _ALL_SEALS)
    lean = Bundle(file, fd, len(head), places).arguments()
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-E"] + lean + arguments)


def _file_of(file: str, name: str) -> str:
    """The file that a module seems to come from: the file of all is shown as a folder."""
    return "%s/%s.py" % (file, name)
