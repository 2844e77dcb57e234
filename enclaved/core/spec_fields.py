"""What a well-formed request for a sandbox looks like, whatever policy then says of it. Pure."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from enclaved.errors import FieldViolation
from enclaved.model import SandboxRequest

MIB = 1024 * 1024

MEMORY_MIN_BYTES = 64 * MIB
TMPFS_MIN_BYTES = 64 * 1024
CPU_MIN = 0.05
PIDS_MIN = 32
TTL_MIN_S = 1.0
IDLE_TIMEOUT_MIN_S = 1.0
SECONDS_MAX = 1e9
"""More than thirty years: a timeout or time to live beyond it is a mistake, not a wish."""

IMAGE_MAX = 512
WORKING_DIR_MAX_BYTES = 255
ENV_ENTRIES_MAX = 256
ENV_BYTES_MAX = 64 * 1024

_WORKING_DIR = re.compile(r"(/[\w.@+=-]+)+")
# A tmpfs in one of these would hide what the image needs, or come to lie on another tmpfs.
_SYSTEM_DIR = re.compile(r"/(bin|boot|dev|etc|lib|lib32|lib64|libx32|proc|run|sbin|sys|tmp|usr|var)(/.*)?|/opt")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED_PREFIXES = ("LD_", "PYTHON", "ENCLAVED_", "MS_ENCLAVE_")
_RESERVED_NAMES = frozenset({"BASH_ENV", "GCONV_PATH", "GLIBC_TUNABLES"})


@dataclass(frozen=True, slots=True)
class _Quantity:
    """A number that a request may name. Beyond ``absurd`` it is malformed instead of merely refused."""

    field: str
    unit: str
    least: float
    absurd: float
    whole: bool = False


_QUANTITIES = (
    _Quantity("memory_limit_bytes", "bytes", MEMORY_MIN_BYTES, 2**50, whole=True),
    _Quantity("cpu_limit", "cores", CPU_MIN, 4096),
    _Quantity("pids_limit", "processes", PIDS_MIN, 2**22, whole=True),
    _Quantity("working_dir_size_bytes", "bytes", TMPFS_MIN_BYTES, 2**50, whole=True),
    _Quantity("tmp_size_bytes", "bytes", TMPFS_MIN_BYTES, 2**50, whole=True),
    _Quantity("timeout_s", "seconds", 0, SECONDS_MAX),
    _Quantity("ttl_s", "seconds", TTL_MIN_S, SECONDS_MAX),
)
_IDLE_TIMEOUT = _Quantity("idle_timeout_s", "seconds", IDLE_TIMEOUT_MIN_S, SECONDS_MAX)


def malformed(request: SandboxRequest) -> Iterator[FieldViolation]:
    """Finds every malformed field, as ``spec.FIELD``. Tools are not looked at: they need the registry."""
    for quantity in _QUANTITIES:
        yield from _quantity(quantity, getattr(request, quantity.field))
    if request.idle_timeout_s != 0:
        yield from _quantity(_IDLE_TIMEOUT, request.idle_timeout_s)
    yield from _problem("image", request.image, _image_problem)
    yield from _problem("working_dir", request.working_dir, directory_problem)
    for text in _env_problems(request.env_vars):
        yield FieldViolation("spec.env_vars", text)


def is_seconds(value: object, least: float = 0.0) -> bool:
    """Tells whether a value is a finite and sensible number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= SECONDS_MAX


def has_surrogates(text: str) -> bool:
    """Tells whether text holds half a surrogate pair, which is no character and has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def shown(text: str) -> str:
    """Shows a stranger's text in an error: quoted, escaped, at most 64 characters of it."""
    return ascii(text if len(text) <= 64 else f"{text[:61]}...")


def _quantity(quantity: _Quantity, value: object) -> Iterator[FieldViolation]:
    if value is None:
        return
    field = f"spec.{quantity.field}"
    wanted = int if quantity.whole else int | float
    # NaN compares false with everything, so it fails the first of these comparisons.
    if not isinstance(value, wanted) or isinstance(value, bool) or not quantity.least <= value:
        number = "whole number" if quantity.whole else "finite number"
        text = f"must be a {number} of {quantity.unit}, at least {quantity.least}"
        yield FieldViolation(field, f"{text}; leave it out for the default")
    elif value > quantity.absurd:
        yield FieldViolation(field, f"asks for more {quantity.unit} than make sense; leave it out for the default")


def _problem(field: str, value: str | None, find: Callable[[str], str | None]) -> Iterator[FieldViolation]:
    text = None if value is None else find(value)
    if text is not None:
        yield FieldViolation(f"spec.{field}", text)


def _image_problem(image: str) -> str | None:
    if not image:
        return "is empty; name an image, or leave it out for the default one"
    if len(image) > IMAGE_MAX:
        return f"has {len(image)} characters, and a name of an image has at most {IMAGE_MAX}"
    if not image.isascii() or not image.isprintable() or " " in image:
        return f"{shown(image)} is no name of an image: no spaces, control characters or letters beyond ASCII"
    return None


def directory_problem(path: str) -> str | None:
    """Says why a path in the sandbox cannot be a directory of the caller's own, if it cannot."""
    remedy = "use a directory of its own, such as /sandbox"
    if not _WORKING_DIR.fullmatch(path) or posixpath.normpath(path) != path:
        return f"{shown(path)} is not absolute, not normalised or not of plain characters; {remedy}"
    if len(path.encode()) > WORKING_DIR_MAX_BYTES:
        return f"has more than {WORKING_DIR_MAX_BYTES} bytes; {remedy}"
    if _SYSTEM_DIR.fullmatch(path):
        return f"{shown(path)} would hide a directory of the system; {remedy}"
    return None


def _env_problems(variables: Mapping[str, str]) -> Iterator[str]:
    if len(variables) > ENV_ENTRIES_MAX:
        yield f"has {len(variables)} entries; at most {ENV_ENTRIES_MAX} are possible"
        return
    for name, value in variables.items():
        if not _ENV_NAME.fullmatch(name):
            yield f"{shown(name)} is no name of a variable: it must match ^{_ENV_NAME.pattern}$"
        elif name.startswith(_RESERVED_PREFIXES) or name in _RESERVED_NAMES:
            yield f"{shown(name)} is reserved, as are all that steer loaders and interpreters; set it in the program"
        elif "\0" in value or has_surrogates(value):
            yield f"the value of {shown(name)} holds a NUL or half a surrogate pair; remove it"
    size_bytes = sum(len(text.encode(errors="surrogatepass")) for pair in variables.items() for text in pair)
    if size_bytes > ENV_BYTES_MAX:
        yield f"has {size_bytes} bytes in all, and at most {ENV_BYTES_MAX} are possible; put large values into files"
