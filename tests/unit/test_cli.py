"""The command line: what it prints, and that what goes wrong is one line with a hint."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from ms_enclave import __version__

from enclaved.cli import ExitCode, main
from enclaved.config import SETTINGS, Settings


@pytest.fixture
def command(capsys, monkeypatch):
    """Runs the command; returns its exit code, standard output and the lines of standard error."""
    monkeypatch.setenv("ENCLAVED_CONFIG", "/dev/null")

    def command(*arguments: str) -> tuple[int, str, list[str]]:
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err.splitlines()

    return command


def test_the_version_is_shown(command):
    assert command("--version") == (0, f"enclaved, version {__version__}\n", [])


@pytest.mark.parametrize("arguments", [(), ("run",), ("config",), ("config", "show"), ("config", "check"), ("prune",)])
def test_every_command_has_help_with_examples(command, arguments):
    code, out, err = command(*arguments, "--help")
    assert (code, err) == (0, [])
    assert "Example" in out or arguments == ("config",)


def test_help_shows_every_setting_as_a_flag_and_hides_what_is_for_the_sdk(command):
    _, out, _ = command("run", "--help")
    assert set(re.findall(r"--[a-z-]+", out)) >= {setting.flag for setting in SETTINGS}
    assert "embedded" not in out.replace("embedded daemons", "")


def test_the_documented_exit_codes_are_those_of_the_help_and_of_the_page(command):
    _, out, _ = command("--help")
    page = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    codes = {int(code) for code in ExitCode}
    assert {int(code) for code in re.findall(r"^ +(\d)  \w", out, re.MULTILINE)} == codes
    assert {int(code) for code in re.findall(r"^\| (\d) \|", page, re.MULTILINE)} == codes


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), r"enclaved: Missing command \(try enclaved --help\)"),
        (("runn",), r"enclaved: No such command 'runn'.* \(try enclaved --help\)"),
        (("run", "--colour"), r"enclaved: No such option.*--colour.*\(try enclaved run --help\)"),
        (("run", "extra"), r"enclaved: Got unexpected extra argument .*\(try enclaved run --help\)"),
        (("config", "check", "/none.toml"), "enclaved: file /none.toml: there is no such file"),
        (("run", "--embedded-parent-fd", "x"), r"enclaved: Invalid value for '--embedded-parent-fd'.*"),
    ],
)
def test_what_is_wrong_is_one_line_with_a_hint(command, arguments, line):
    code, out, err = command(*arguments)
    assert (code, out, len(err)) == (2, "", 1)
    assert re.fullmatch(line, err[0])


def test_without_a_file_the_configuration_that_would_be_used_is_checked(command, monkeypatch):
    assert command("config", "check") == (0, "the configuration: ok\n", [])
    monkeypatch.setenv("ENCLAVED_CONFIG", "/none.toml")
    assert command("config", "check") == (2, "", ["enclaved: file /none.toml: there is no such file"])


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_keys_are_never_shown(command, monkeypatch, form):
    monkeypatch.setenv("ENCLAVED_HTTP_API_KEYS", "s3cret, another")
    code, out, err = command("config", "show", *form)
    assert (code, out.count("(hidden)"), err) == (0, 2, [])
    assert "s3cret" not in out


def test_the_configuration_is_shown_as_toml_with_origins(command, monkeypatch):
    monkeypatch.setenv("ENCLAVED_LIMITS_CPU_MAX", "3")
    code, out, err = command("config", "show")
    assert (code, err) == (0, [])
    shown = tomllib.loads(out)
    flat = {f"{section}.{name}": value for section, table in shown.items() for name, value in table.items()}
    assert flat == {**{s.key: Settings().value(s.key) for s in SETTINGS}, "limits.cpu_max": 3.0}
    assert "limits.cpu_max = 3.0" in out
    assert "# environment ENCLAVED_LIMITS_CPU_MAX" in out


def test_the_configuration_is_shown_as_json(command, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[limits]\npids_max = 300\n")
    code, out, _ = command("config", "show", "--json", "--config", str(file))
    assert code == 0
    assert json.loads(out)["limits.pids_max"] == {"value": 300, "origin": f"file {file}"}
    assert set(json.loads(out)) == {setting.key for setting in SETTINGS}


def test_a_strange_variable_is_a_warning(command, monkeypatch):
    monkeypatch.setenv("ENCLAVED_PORT", "tcp://10.0.0.1:80")
    code, _, err = command("config", "show")
    assert (code, err) == (0, ["enclaved: warning: environment ENCLAVED_PORT is no setting and is ignored"])


def test_a_file_is_checked_without_the_environment(command, tmp_path, monkeypatch):
    monkeypatch.setenv("ENCLAVED_LOG_LEVEL", "loud")
    file = tmp_path / "c.toml"
    file.write_text("[limits]\npids_max = 300\n")
    assert command("config", "check", str(file)) == (0, f"{file}: ok\n", [])
    file.write_text("[limits]\npids_maxx = 300\nx = 1\n")
    code, out, err = command("config", "check", str(file))
    assert (code, out) == (2, "")
    assert err == [
        f"enclaved: file {file}, line 2: limits.pids_maxx is no setting; did you mean limits.pids_max?",
        f"enclaved: file {file}, line 3: limits.x is no setting",
    ]
