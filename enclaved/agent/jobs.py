"""Jobs as the guest's children read them, and the environment of a sandbox's programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from enclaved.agent.guest.limits import MAX_JOB_BYTES
from enclaved.agent.install import USER_NAME
from enclaved.agent.versions import needed_for_job
from enclaved.errors import FieldViolation, InvalidRequest
from enclaved.model import CommandJob, FileJob, Job, PythonJob

_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode
"""`json.dumps` makes an encoder each time."""

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_LOADER_PREFIXES = ("LD_", "PYTHON")
_LOADER_NAMES = frozenset({"GLIBC_TUNABLES", "GCONV_PATH", "BASH_ENV", "ENV", "IFS"})


@dataclass(frozen=True, slots=True)
class WireJob:
    """A job in the form in which it travels."""

    document: bytes
    context: str | None
    """The context that it needs; ``None``: a process of its own."""
    needs_version: int = 0
    """The version of the guest protocol from which on a guest can do it; 0: every one."""


def environment(image_env: Mapping[str, str], env_vars: Mapping[str, str], working_dir: str) -> dict[str, str]:
    """Makes the environment of programs: the image's without loader variables, ours, then the caller's."""
    inherited = {
        name: value
        for name, value in image_env.items()
        if not name.startswith(_LOADER_PREFIXES) and name not in _LOADER_NAMES
    }
    ours = {
        "HOME": working_dir,
        "USER": USER_NAME,
        "LOGNAME": USER_NAME,
        "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own
        "LANG": "C.UTF-8",
    }
    return {"PATH": DEFAULT_PATH, **inherited, **ours, **env_vars}


def encode_job(job: Job, env: Mapping[str, str]) -> WireJob:
    """Writes a job for the guest. Raises `InvalidRequest` if it is larger than a guest accepts."""
    context = None
    match job:
        case PythonJob():
            context = job.context
            document: dict[str, object] = {"kind": "python", "code": job.code, "env": dict(env)}
            if job.imports is not None:
                document["imports"] = {"allowed": job.imports.allowed, "blocked": job.imports.blocked}
        case CommandJob():
            document = {"kind": "command", "argv": list(job.argv), "shell": job.shell, "env": dict(env)}
        case FileJob():
            document = {
                "kind": "file",
                "operation": job.operation.value,
                "path": job.path,
                "content": job.content,
                "encoding": job.encoding,
                "mode": job.mode,
                "create_parents": job.create_parents,
                "offset": job.offset,
                "length": job.length,
                "report": job.report,
                "recursive": job.recursive,
                "missing_ok": job.missing_ok,
                "target_path": job.target_path,
                "replace": job.replace,
                "glob": job.glob,
                "pattern": job.pattern,
                "literal": job.literal,
                "ignore_case": job.ignore_case,
                "matches_max": job.matches_max,
                "gzip": job.gzip,
                "names": list(job.names),
                "upload_id": job.upload_id,
            }
            if job.rules is not None:
                document["rules"] = {
                    "allowed": job.rules.allowed,
                    "blocked": job.rules.blocked,
                    "size_max_bytes": job.rules.size_max_bytes,
                }
    encoded = _ENCODE(document).encode()
    if len(encoded) > MAX_JOB_BYTES:
        hint = f"the job is {len(encoded)} bytes, more than {MAX_JOB_BYTES}; put large content into files"
        raise InvalidRequest(FieldViolation("parameters", hint))
    return WireJob(encoded, context, needed_for_job(job))
