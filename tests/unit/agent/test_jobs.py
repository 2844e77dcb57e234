"""Jobs as the guest's children read them, and the environment of programs."""

from __future__ import annotations

import json

import pytest

from enclaved.agent.guest.limits import MAX_JOB_BYTES
from enclaved.agent.jobs import DEFAULT_PATH, encode_job, environment
from enclaved.errors import InvalidRequest
from enclaved.model import CommandJob, FileJob, FileOperation, Job, PythonJob

OURS = {"HOME": "/sandbox", "USER": "sandbox", "LOGNAME": "sandbox", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}


def test_an_empty_image_and_no_wishes_give_what_programs_need() -> None:
    assert environment({}, {}, "/sandbox") == {"PATH": DEFAULT_PATH, **OURS}


def test_the_images_environment_reaches_programs() -> None:
    found = environment({"GOPATH": "/go", "PATH": "/go/bin:/bin"}, {}, "/sandbox")
    assert found == {"GOPATH": "/go", "PATH": "/go/bin:/bin", **OURS}


@pytest.mark.parametrize(
    "name",
    [
        "LD_PRELOAD",
        "LD_LIBRARY_PATH",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "PYTHONHOME",
        "GLIBC_TUNABLES",
        "GCONV_PATH",
        "BASH_ENV",
    ],
)
def test_variables_of_the_image_that_load_code_do_not(name: str) -> None:
    assert name not in environment({name: "/evil"}, {}, "/sandbox")


def test_the_image_cannot_name_another_home_but_the_caller_can() -> None:
    assert environment({"HOME": "/root", "USER": "root"}, {}, "/sandbox")["HOME"] == "/sandbox"
    found = environment({"LANG": "de_DE"}, {"HOME": "/sandbox/home", "LANG": "fr_FR"}, "/sandbox")
    assert (found["HOME"], found["LANG"], found["USER"]) == ("/sandbox/home", "fr_FR", "sandbox")


@pytest.mark.parametrize(
    ("job", "context", "document"),
    [
        (PythonJob("print(1)"), "default", {"kind": "python", "code": "print(1)", "env": {"A": "b"}}),
        (PythonJob("1", context=None), None, {"kind": "python", "code": "1", "env": {"A": "b"}}),
        (CommandJob(shell="ls"), None, {"kind": "command", "argv": [], "shell": "ls", "env": {"A": "b"}}),
        (CommandJob(argv=("ls", "-l")), None, {"kind": "command", "argv": ["ls", "-l"], "shell": None}),
        (
            FileJob(FileOperation.WRITE, "a", content="\N{SNOWMAN}", encoding="utf-16", report="done"),
            None,
            {"kind": "file", "operation": "write", "path": "a", "content": "\N{SNOWMAN}", "encoding": "utf-16"},
        ),
        (
            FileJob(FileOperation.READ, "a\udcff", offset=3, length=4),
            None,
            {"kind": "file", "operation": "read", "path": "a\udcff", "offset": 3, "length": 4, "content": None},
        ),
    ],
)
def test_a_job_becomes_a_document(job: Job, context: str | None, document: dict[str, object]) -> None:
    wire = encode_job(job, {"A": "b"})
    assert wire.context == context
    decoded = json.loads(wire.document)
    assert {name: decoded[name] for name in document} == document


def test_a_job_larger_than_a_guest_takes_is_refused_with_a_hint() -> None:
    with pytest.raises(InvalidRequest, match="put large content into files") as caught:
        encode_job(PythonJob("x" * MAX_JOB_BYTES), {})
    assert caught.value.violations[0].field == "parameters"
