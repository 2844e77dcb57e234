"""``enclaved policy``: what it prints, and how it ends."""

from __future__ import annotations

import io
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enclaved.cli import ExitCode, main

TEXT = """
[roles.ci]
networks = ["none", "bridge"]
memory_max_bytes = 268435456
volumes = [{ path = "/srv/data" }]
"""

Command = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command; returns its exit code, standard output and the lines of standard error."""
    monkeypatch.setenv("ENCLAVED_CONFIG", "/dev/null")

    def command(*arguments: str, stdin: str = "") -> tuple[int, str, list[str]]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        with pytest.raises(SystemExit) as caught:
            main(["policy", *arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err.splitlines()

    return command


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "policy.toml"
    path.write_text(TEXT)
    return str(path)


def test_a_good_file_is_ok_and_its_roles_are_named(command: Command, file: str) -> None:
    assert command("check", file) == (0, f"{file}: ok, roles: ci, default, embedded, monitor\n", [])


def test_without_a_file_the_compiled_roles_are_checked(command: Command) -> None:
    assert command("check") == (0, "built in: ok, roles: default, embedded, monitor\n", [])


def test_a_bad_file_is_refused_with_a_line_for_each_mistake(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[roles.ci]\nprivileged = true\ncpu_mx = 1.0\n")
    code, out, err = command("check", str(path))
    assert (code, out) == (ExitCode.USAGE, "")
    assert [line.partition(": ")[2].partition(": ")[0] for line in err] == [
        f"policy file {path}, line 2",
        f"policy file {path}, line 3",
    ]


def test_what_is_shown_is_a_policy_file_with_origins(command: Command, file: str, tmp_path: Path) -> None:
    code, out, err = command("show", "--file", file)
    assert (code, err) == (0, [])
    assert f"# file {file}, line 4" in out
    assert list(tomllib.loads(out)["roles"]) == ["ci", "default", "embedded", "monitor"]
    shown = tmp_path / "shown.toml"
    shown.write_text(out)
    assert command("check", str(shown))[0] == 0


def test_one_role_is_shown_as_json(command: Command, file: str) -> None:
    code, out, _ = command("show", "--file", file, "--role", "ci", "--json")
    assert code == 0
    assert json.loads(out)["ci"]["memory_max_bytes"] == {"value": 268435456, "origin": f"file {file}, line 4"}


def test_a_role_that_there_is_not_is_a_mistake_of_the_command_line(command: Command) -> None:
    code, _, (line,) = command("show", "--role", "nope")
    assert (code, line) == (ExitCode.USAGE, "enclaved: there is no role 'nope'; known are default, embedded, monitor")


def explained(command: Command, file: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    code, out, _ = command("explain", "-", "--role", "ci", "--file", file, "--json", stdin=json.dumps(request))
    return code, json.loads(out)


def test_what_would_be_granted_is_explained_rule_by_rule(command: Command, file: str) -> None:
    volumes = [{"host_path": "/srv/data/x", "bind": "/data", "mode": "ro"}]
    code, found = explained(command, file, {"network_enabled": True, "volumes": volumes, "tools": ["bash"]})
    assert (code, found["granted"]) == (0, True)
    (ruling,) = [each for each in found["rulings"] if each["rule"] == "volumes"]
    assert (ruling["outcome"], ruling["origin"]) == ("granted", f"file {file}, line 5")
    assert found["spec"]["mounts"] == [{"host_path": "/srv/data/x", "target": "/data", "read_only": True}]
    assert (found["spec"]["network"], found["spec"]["tools"]) == ("bridge", {"shell_executor": {}})


def test_every_refusal_is_explained_and_the_command_fails(command: Command, file: str) -> None:
    request = {"privileged": True, "memory_limit_bytes": 2**30, "command": ["true"]}
    code, found = explained(command, file, request)
    assert (code, found["granted"], found["spec"]) == (ExitCode.FAILED, False, None)
    refused = {each["rule"]: each["origin"] for each in found["rulings"] if each["outcome"] == "refused"}
    assert refused == {
        "privileged": "built in",
        "command": "built in",
        "memory_max_bytes": f"file {file}, line 4",
    }


def test_an_explanation_for_a_person_names_rule_and_origin(command: Command, file: str, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text('{"ports": [{"container_port": "80"}]}')
    code, out, _ = command("explain", str(request), "--file", file)
    assert code == ExitCode.FAILED
    assert "refused  ports = 80 on 127.0.0.1:any\n         by ports, built in\n" in out
    assert out.endswith("role default: refused\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the request is no JSON object: Invalid JSON"),
        ("[]", "the request is no JSON object"),
        ('{"privilege": true}', "the request has 'privilege', which is no field of a sandbox's specification"),
        ('{"volumes": [{"host_path": "/x"}]}', "the request's volumes.0.bind: Field required"),
    ],
)
def test_what_is_no_request_is_said(command: Command, text: str, said: str) -> None:
    code, _, (line,) = command("explain", "-", stdin=text)
    assert code == ExitCode.USAGE
    assert line.startswith(f"enclaved: {said}")


def test_a_malformed_request_names_its_fields(command: Command) -> None:
    code, _, lines = command("explain", "-", stdin='{"memory_limit_bytes": 0, "image": ""}')
    assert code == ExitCode.FAILED
    assert [line.split(": ")[2] for line in lines] == ["spec.memory_limit_bytes", "spec.image"]


@pytest.mark.parametrize("arguments", [("check",), ("show",), ("explain",)])
def test_every_command_has_help_with_examples(command: Command, arguments: tuple[str, ...]) -> None:
    code, out, err = command(*arguments, "--help")
    assert (code, err) == (0, [])
    assert "Examples:" in out


def test_a_request_that_is_no_text_or_has_no_end_is_refused_in_a_line(command: Command, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\xfe{}")
    for path, text in (("bytes", "is no JSON object"), ("/dev/zero", "has more than 1048576 bytes")):
        code, out, lines = command("explain", str(tmp_path / path))
        assert (code, out, len(lines)) == (ExitCode.USAGE, "", 1)
        assert text in lines[0]
