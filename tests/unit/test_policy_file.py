"""The policy file: what it says counts, and every mistake is named with its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from enclaved.config import ConfigError, read_policy
from enclaved.core.policy import PolicyLimits, PortRange, Role, Rules, ToolRule, VolumeRule, built_in_rules
from enclaved.tools.registry import ToolRegistry

BUILT_IN = built_in_rules(PolicyLimits(), working_dir="/home/me", protected=("/srv/state",))
DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "policy.toml"


def read(file: Path, text: str, built_in: Rules = BUILT_IN, working_dir: str = "/home/me") -> Rules:
    file.write_text(text)
    return read_policy(file, built_in, tools=ToolRegistry.built_in(), working_dir=working_dir)


def problems(file: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(file, text)
    return [problem.removeprefix(f"policy file {file}") for problem in caught.value.problems]


def role(file: Path, text: str, name: str = "x") -> Role:
    return read(file, text).roles[name]


def test_a_file_that_says_nothing_changes_nothing(file: Path) -> None:
    assert dict(read(file, "").roles) == dict(BUILT_IN.roles)
    assert read(file, "").origin == f"file {file}"


def test_a_role_says_what_it_says_and_has_the_rest_of_the_default_role(file: Path) -> None:
    found = role(
        file,
        f"""
        [roles.x]
        users = ["token:ci-*", "local"]
        memory_max_bytes = 1073741824
        networks = ["none", "bridge"]
        images = ["python:3.11-slim", "tools:1@{DIGEST}"]
        ports = [8080, "9000-9009", "any"]
        volumes = [{{ path = "/srv/data/" }}, {{ path = "/srv/sets", mode = "rw", name = "sets" }}, {{ path = "." }}]
        may_pull = false
        [roles.x.tool_options.python_executor]
        allowed = ["timeout"]
        forced = {{ blocked_modules = ["socket"] }}
        """,
    )
    assert found.users == ("token:ci-*", "local")
    assert found.limits == replace(PolicyLimits(), memory_max_bytes=2**30)
    assert (found.networks, found.may_pull, found.command, found.tools) == (("none", "bridge"), False, False, ("*",))
    assert found.ports == (PortRange(8080, 8080), PortRange(9000, 9009), PortRange(0, 0))
    assert found.volumes == (
        VolumeRule("/srv/data"),
        VolumeRule("/srv/sets", writable=True, name="sets"),
        VolumeRule("/home/me"),
    )
    assert found.tool_options == {"python_executor": ToolRule(("timeout",), {"blocked_modules": ["socket"]})}
    assert found.origin("memory_max_bytes") == f"file {file}, line 4"
    assert found.origin("tool_options.python_executor") == f"file {file}, line 10"
    assert (found.origin("command"), found.origin("cpu_max")) == ("built in", "setting limits.cpu_max")


def test_what_is_forced_on_a_tool_stays_where_a_role_says_only_what_callers_may_set(file: Path) -> None:
    found = read(
        file,
        """
        [roles.parent.tool_options.python_executor]
        allowed = ["timeout"]
        forced = { blocked_modules = ["socket"] }
        [roles.more]
        extends = "parent"
        [roles.more.tool_options.python_executor]
        allowed = ["timeout", "max_output_size"]
        [roles.other]
        extends = "parent"
        [roles.other.tool_options.python_executor]
        forced = {}
        """,
    )
    options = {name: found.roles[name].tool_options["python_executor"] for name in ("more", "other")}
    assert options == {
        "more": ToolRule(("timeout", "max_output_size"), {"blocked_modules": ["socket"]}),
        "other": ToolRule(("timeout",), {}),
    }


def test_a_role_may_extend_another_of_the_file_or_a_compiled_one(file: Path) -> None:
    found = read(
        file,
        """
        [roles.default]
        networks = ["none", "bridge"]
        users = ["local"]
        [roles.ci]
        extends = "default"
        creates_per_minute = 5
        [roles.job]
        extends = "ci"
        command = true
        [roles.own]
        extends = "embedded"
        """,
    ).roles
    assert found["job"].networks == ("none", "bridge")
    assert (found["job"].limits.creates_per_minute, found["job"].command) == (5, True)
    assert (found["ci"].command, found["ci"].users) == (False, ())
    assert found["job"].origin("creates_per_minute") == f"file {file}, line 7"
    assert found["job"].origin("users") == "built in"
    assert found["own"].volumes == BUILT_IN.roles["embedded"].volumes
    assert list(found) == ["default", "ci", "job", "own", "embedded", "monitor"]


def test_a_default_above_a_lowered_maximum_is_lowered_with_it_and_says_so(file: Path) -> None:
    found = role(file, "[roles.x]\nmemory_max_bytes = 134217728\nidle_timeout_max_s = 60.0\n")
    assert found.limits.memory_default_bytes == 134217728
    assert found.origin("memory_default_bytes") == f"file {file}, line 2: lowered to memory_max_bytes"


def test_where_nobody_embeds_the_daemon_there_is_no_directory_of_theirs(file: Path) -> None:
    text = '[roles.x]\nvolumes = [{ path = "." }]\n'
    assert read(file, text, built_in_rules(PolicyLimits()), "").roles["x"].volumes == ()
    assert read(file, text, built_in_rules(PolicyLimits()), "/").roles["x"].volumes == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[roles.x]\nprivileged = true\n", ", line 2: roles.x.privileged cannot be granted: privileged is in no role"),
        ("[roles.x]\n\nmemry_max_bytes = 1\n", ", line 3: roles.x.memry_max_bytes is no rule; did you mean memory_max"),
        ('[roles.x]\nnetworks = ["host"]\n', ", line 2: roles.x.networks.0 must be 'none' or 'bridge'"),
        ('[roles.x]\nnetworks = ["bridge"]\n', ', line 2: roles.x.networks must have "none"'),
        ("[roles.x]\ncpu_max = nan\n", ", line 2: roles.x.cpu_max must be a finite number"),
        ("[roles.x]\nmemory_max_bytes = '1g'\n", ", line 2: roles.x.memory_max_bytes must be a valid integer"),
        ("[roles.x]\npids_max = 1\n", ", line 2: roles.x.pids_max contradicts pids_default"),
        ("[roles.x]\ncommand = 1\n", ", line 2: roles.x.command must be a valid boolean"),
        ("[role.x]\n", ", line 1: role is no rule; did you mean roles?"),
        ("[roles.X]\n", ", line 1: roles.X must match pattern"),
        ('[roles.x]\nextends = "defalt"\n', ", line 2: roles.x.extends names 'defalt', and there is no such role"),
        ('[roles.x]\nextends = "x"\n', ", line 2: roles.x.extends leads back to the role itself"),
        ('[roles.x]\nports = ["80-70"]\n', ", line 2: roles.x.ports has '80-70'; write 8080"),
        ("[roles.x]\nports = [0]\n", ", line 2: roles.x.ports has 0; write 8080"),
        ('[roles.x]\nvolumes = [{ path = "/" }]\n', ", line 2: roles.x.volumes has '/', which no policy can grant"),
        ('[roles.x]\nvolumes = [{ path = "/etc/x" }]\n', ", line 2: roles.x.volumes has '/etc/x', which lies in /etc"),
        (
            '[roles.x]\nvolumes = [{ path = "/srv/state/a" }]\n',
            ", line 2: roles.x.volumes has '/srv/state/a', which lies",
        ),
        (
            '[roles.x]\nvolumes = [{ path = "data" }]\n',
            ", line 2: roles.x.volumes has 'data', which must be an absolute",
        ),
        (
            '[roles.x]\nvolumes = [{ path = "/a/../b" }]\n',
            ", line 2: roles.x.volumes has '/a/../b', which must be an abs",
        ),
        ('[roles.x]\nvolumes = [{ path = "/a", mod = "rw" }]\n', ", line 2: roles.x.volumes.0.mod is no rule"),
        ('[roles.x]\nimages = ["a b"]\n', ", line 2: roles.x.images has 'a b', which is no name of an image"),
        ('[roles.x]\nimages = ["**@sha256:1"]\n', ", line 2: roles.x.images has '**@sha256:1', which must end with"),
        ('[roles.x]\nimages = ["alpine"]\n', ", line 2: roles.x.images does not have the role's own image_default"),
        ("[roles.x]\nimages_by_digest = true\n", ", line 2: roles.x.images_by_digest is set, and image_default"),
        (
            '[roles.x]\nruntime_classes = ["runsc"]\n',
            ", line 2: roles.x.runtime_classes has 'runsc', which is not conf",
        ),
        ('[roles.x]\ntools = ["bash"]\n', ", line 2: roles.x.tools has 'bash', and no tool is called that; known are"),
        ("[roles.x.tool_options.nope]\n", ", line 1: roles.x.tool_options.nope is about no tool"),
        (
            '[roles.x.tool_options.python_executor]\nallowed = ["nope"]\n',
            ", line 2: roles.x.tool_options.python_executor.allowed has 'nope', which is no option",
        ),
        (
            "[roles.x.tool_options.python_executor]\n[roles.x.tool_options.python_executor.forced]\ntimeout = -1\n",
            ", line 2: roles.x.tool_options.python_executor.forced is wrong: tools.python_executor.timeout",
        ),
        ('[roles.x]\nusers = ["ci"]\n', ", line 2: roles.x.users has 'ci', which must start with one of"),
        (
            '[roles.x]\nusers = ["local"]\n[roles.y]\nusers = ["local"]\n',
            ", line 4: roles.y.users has 'local', who has",
        ),
        ("[roles.x]\nmemory_max_bytes =\n", ": is not TOML: Invalid value (at line 2, column 19)"),
        ("[roles.x]\n[roles.x]\n", ": is not TOML: Cannot declare ('roles', 'x') twice (at line 2, column 9)"),
    ],
)
def test_a_mistake_is_named_with_its_line(file: Path, text: str, expected: str) -> None:
    (found,) = problems(file, text)
    assert found.startswith(expected)


def test_all_mistakes_are_named_at_once_in_their_order(file: Path) -> None:
    found = problems(file, "[roles.x]\ncpu = 1\npids = 2\n[roles.y]\nram = 3\n")
    assert [problem.partition(":")[0] for problem in found] == [", line 2", ", line 3", ", line 5"]


def test_what_cannot_be_read_says_why(file: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_policy(file, BUILT_IN, tools=ToolRegistry.built_in())
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not TOML"):
        read_policy(file, BUILT_IN, tools=ToolRegistry.built_in())
    file.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        read_policy(file, BUILT_IN, tools=ToolRegistry.built_in())
    for text in ("[" * 100_000, "9" * 5000):
        file.write_text(f"x = {text}")
        with pytest.raises(ConfigError, match="is not TOML"):
            read_policy(file, BUILT_IN, tools=ToolRegistry.built_in())
    with pytest.raises(ConfigError, match="cannot be read: embedded null"):
        read_policy(Path("/x\0"), BUILT_IN, tools=ToolRegistry.built_in())
