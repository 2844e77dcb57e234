"""Configuration: which source counts, where a value came from, and what is said of a wrong one."""

import re
from pathlib import Path

import pytest

from enclaved.config import SETTINGS, ConfigError, Configuration, Settings, load, parse_address
from enclaved.core.policy import PolicyLimits


@pytest.fixture
def write(tmp_path: Path):
    """Writes a configuration file."""

    def write(text: str) -> Path:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return path

    return write


def loaded(file: Path | None = None, flags: dict[str, str] | None = None, **environ: str) -> Configuration:
    return load(file, environ=environ, flags=flags)


def problems(file: Path | None = None, flags: dict[str, str] | None = None, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(file, flags, **environ)
    return caught.value.problems


def test_without_anything_the_defaults_are_in_force(monkeypatch):
    monkeypatch.setattr("enclaved.config.loading.DEFAULT_FILE", Path("/nonexistent/config.toml"))
    found = loaded()
    assert found.settings == Settings()
    assert set(found.origins.values()) == {"default"}
    assert found.settings.policy_limits() == PolicyLimits()


def test_each_source_replaces_the_one_before_and_is_remembered(write):
    file = write("[limits]\ncpu_max = 3.5\npids_max = 900\ntimeout_max_s = 100\n")
    environ = {"ENCLAVED_LIMITS_PIDS_MAX": "901", "ENCLAVED_LIMITS_TIMEOUT_MAX_S": "101"}
    found = loaded(file, {"limits.timeout_max_s": "102.5"}, **environ)
    limits = found.settings.limits
    assert (limits.cpu_default, limits.cpu_max, limits.pids_max, limits.timeout_max_s) == (1.0, 3.5, 901, 102.5)
    assert [found.origins[f"limits.{name}"] for name in ("cpu_default", "cpu_max", "pids_max", "timeout_max_s")] == [
        "default",
        f"file {file}",
        "environment ENCLAVED_LIMITS_PIDS_MAX",
        "flag --limits-timeout-max-s",
    ]


def test_a_whole_number_is_a_number_of_seconds(write):
    assert loaded(write("[limits]\ntimeout_max_s = 60\n")).settings.limits.timeout_max_s == 60.0


def test_a_file_that_was_asked_for_must_exist(tmp_path):
    assert problems(tmp_path / "none.toml") == [f"file {tmp_path}/none.toml: there is no such file"]
    assert problems(ENCLAVED_CONFIG="/none.toml") == ["file /none.toml: there is no such file"]


def test_the_environment_may_name_the_file(write):
    file = write("[log]\nlevel = 'debug'\n")
    assert loaded(ENCLAVED_CONFIG=str(file)).settings.log.level == "debug"


def test_an_unreadable_file_says_why(tmp_path):
    (found,) = problems(tmp_path)
    assert found == f"file {tmp_path}: cannot be read: Is a directory"


@pytest.mark.parametrize(
    "text", ["[limits", "x = ", "\x00", "[a]\n[a]\n", "x = " + "[" * 100_000, "[limits]\npids_max = " + "9" * 5000]
)
def test_a_file_that_is_not_toml_says_where(write, text):
    (found,) = problems(write(text))
    assert "is not TOML" in found


def test_a_table_that_is_a_value_is_told_how_it_is_written(write):
    (found,) = problems(write("listen = 3\n"))
    assert found.endswith("line 1: listen must be a table; write [listen]")


def test_a_file_in_another_encoding_is_refused(tmp_path):
    file = tmp_path / "latin1.toml"
    file.write_bytes(b"[log]\nlevel = '\xfc'\n")
    (found,) = problems(file)
    assert "is not TOML" in found


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[limits]\ncpu_maximum = 2\n", "limits.cpu_maximum is no setting; did you mean limits.cpu_max?"),
        ("[limit]\ncpu_max = 2\n", "limit.cpu_max is no setting; did you mean limits.cpu_max?"),
        ("[limit]\n", "limit is no setting; did you mean limits?"),
        ("zzz = 1\n", "zzz is no setting"),
        ("limits = 1\n", "limits must be a table; write [limits]"),
        ("[daemon]\nembedded_parent_fd = 3\n", "daemon.embedded_parent_fd is no setting"),
        ("[limits]\ncpu_max = '5 apples'\n", "limits.cpu_max must be a valid number"),
        ("[limits]\npids_max = '64'\n", "limits.pids_max must be a valid integer"),
        ("[limits]\npids_max = true\n", "limits.pids_max must be a valid integer"),
        ("[limits]\npids_max = 0\n", "limits.pids_max must be greater than 0"),
        ("[limits]\npids_max = -1\n", "limits.pids_max must be greater than 0"),
        ("[limits]\ncpu_max = nan\n", "limits.cpu_max must be a finite number"),
        ("[limits]\ncpu_max = inf\n", "limits.cpu_max must be a finite number"),
        ("[limits]\ncpu_max = 0.5\n", "limits.cpu_default must be at least 0.05 and at most cpu_max"),
        ("[limits]\nmemory_default_bytes = 1024\n", "limits.memory_default_bytes must be at least 67108864"),
        ("[listen]\nunix_mode = '0999'\n", "listen.unix_mode must match pattern"),
        ("[listen]\nunix = 'here.sock'\n", "listen.unix must be an absolute path, is 'here.sock'"),
        (f"[listen]\nunix = '/{'x' * 107}'\n", "listen.unix has more than the 107 bytes that Linux allows"),
        ("[listen]\nunix = ''\n", "listen.unix is empty and so is listen.tcp"),
        ("[listen]\ntcp = '0.0.0.0:50061'\n", "listen.tcp must be a loopback address"),
        ("[listen]\ntcp = '[::]:50061'\n", "listen.tcp must be a loopback address"),
        ("[listen]\ntcp = 'example.org:50061'\n", "listen.tcp must be a loopback address"),
        ("[listen]\ntcp = '50061'\n", "listen.tcp must look like 127.0.0.1:50061"),
        ("[listen]\ntcp = '127.0.0.1:99999'\n", "listen.tcp must look like 127.0.0.1:50061"),
        ("[listen]\nmetrics = '0.0.0.0:9464'\n", "listen.metrics must be a loopback address"),
        ("[state]\ndir = 'state'\n", "state.dir must be an absolute path"),
        (f"[state]\ndir = '/{'x' * 80}'\n", "state.dir must have at most 72 bytes"),
        ("[engine]\nurl = 'ssh://host'\n", "engine.url must start with unix:/// or tcp://"),
        ("[images]\ndefault = ''\n", "images.default must have at least 1 character"),
        ("[images]\naliases = ['a']\n", "images.aliases must be a valid dictionary"),
        ("[images]\naliases = {a = 1}\n", "images.aliases must be a valid string"),
        ("[network]\ndns = ['127.0.0.53']\n", "must be an address of IPv4, and not of the loopback"),
        ("[network]\ndns = ['example.org']\n", "network.dns must be an address of IPv4"),
        ("[log]\nlevel = 'loud'\n", "log.level must be 'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_source_and_what_it_must_be(write, text, wanted):
    file = write(text)
    found = problems(file)
    assert any(wanted in problem for problem in found), found
    assert all(re.match(rf"(file {file}(, line \d+)?|default): ", problem) for problem in found)


def test_a_mistake_in_a_file_is_told_with_its_line(write):
    text = "# ours\n[limits]\npids_max = 300\ncpu_mx = 3\n\n[ log ]\n  level = 'loud'\n[moon]\nphase = 1\n"
    file = write(text)
    assert sorted(problem.partition(" is no ")[0].partition(" must ")[0] for problem in problems(file)) == [
        f"file {file}, line 4: limits.cpu_mx",
        f"file {file}, line 7: log.level",
        f"file {file}, line 9: moon.phase",
    ]
    assert "at line 2" in problems(write("[limits]\ncpu_max =\n"))[0]


def test_every_problem_is_told_at_once(write):
    found = problems(write("[limits]\ncpu_maxx = 1\npids_max = 'x'\n"), {"log.level": "loud"})
    assert len(found) == 3


@pytest.mark.parametrize(
    ("variable", "text", "wanted"),
    [
        ("ENCLAVED_LIMITS_CPU_MAX", "5 apples", "limits.cpu_max must be a valid number"),
        ("ENCLAVED_LIMITS_PIDS_MAX", "1e99", "limits.pids_max must be a valid integer"),
        ("ENCLAVED_LIMITS_CPU_MAX", "NaN", "limits.cpu_max must be a finite number"),
        ("ENCLAVED_ENGINE_PULL", "perhaps", "engine.pull must be a valid boolean"),
        ("ENCLAVED_IMAGES_ALIASES", "a", "images.aliases must look like name=value"),
        ("ENCLAVED_IMAGES_ALIASES", "a=", "images.aliases must look like name=value"),
        ("DOCKER_HOST", "ssh://host", "engine.url must start with unix:/// or tcp://"),
    ],
)
def test_a_wrong_variable_is_named(variable, text, wanted):
    (found,) = problems(**{variable: text})
    assert found.startswith(f"environment {variable}: {wanted}")


def test_texts_become_values():
    environ = {
        "ENCLAVED_ENGINE_PULL": "false",
        "ENCLAVED_LISTEN_METRICS": "",
        "ENCLAVED_IMAGES_ALIASES": "a = b:1 , c=d=e,",
        "ENCLAVED_SANDBOX_UID_FIRST": "2000",
    }
    found = loaded(**environ).settings
    assert (found.engine.pull, found.listen.metrics, found.sandbox.uid_first) == (False, "", 2000)
    assert found.images.aliases == {"a": "b:1", "c": "d=e"}
    assert loaded(ENCLAVED_IMAGES_ALIASES="").settings.images.aliases == {}


def test_an_unknown_variable_is_only_a_warning():
    found = loaded(ENCLAVED_LIMIT_CPU_MAX="3", ENCLAVED_PORT="tcp://10.0.0.1:80", OTHER="x")
    assert len(found.warnings) == 2
    assert "did you mean ENCLAVED_LIMITS_CPU_MAX?" in found.warnings[0]


def test_docker_host_counts_where_nothing_else_names_the_engine(write):
    environ = {"DOCKER_HOST": "unix:///a.sock"}
    found = loaded(**environ)
    assert (found.settings.engine.url, found.origins["engine.url"]) == ("unix:///a.sock", "environment DOCKER_HOST")
    file = write("[engine]\nurl = 'unix:///b.sock'\n")
    assert loaded(file, **environ).settings.engine.url == "unix:///b.sock"
    named = loaded(**environ, ENCLAVED_ENGINE_URL="unix:///c.sock")
    assert named.settings.engine.url == "unix:///c.sock"


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.8.9.1:50061", "[::1]:50061", "localhost:50061"])
def test_loopback_addresses_are_accepted(text):
    assert loaded(ENCLAVED_LISTEN_TCP=text).settings.listen.tcp == text


def test_an_address_is_written_as_it_is_read():
    assert [str(parse_address(text)) for text in ("[::1]:50061", "localhost:1")] == ["[::1]:50061", "localhost:1"]


def test_no_two_settings_share_a_variable_or_a_flag():
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)
    assert len({setting.flag for setting in SETTINGS}) == len(SETTINGS)
