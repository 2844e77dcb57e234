"""What a configuration asks for, what of it is granted, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from ms_enclave.errors import ImageNotFound, InvalidRequest, PolicyDenied
from ms_enclave.sandbox.boxes import Sandbox, SandboxFactory
from ms_enclave.sandbox.model import DockerSandboxConfig, SandboxConfig, SandboxType


def a_sandbox(config: SandboxConfig | dict[str, Any]) -> Sandbox:
    return SandboxFactory.create_sandbox(SandboxType.DOCKER, config)


def test_the_documented_defaults():
    shown = DockerSandboxConfig().model_dump()
    documented = {
        "image": "python:3.11-slim",
        "timeout": 30,
        "tools_config": {},
        "working_dir": "/sandbox",
        "env_vars": {},
        "resource_limits": {},
        "memory_limit": "4g",
        "cpu_limit": 2.0,
        "network": "bridge",
        "network_enabled": True,
        "privileged": False,
        "remove_on_exit": True,
        "volumes": {},
        "ports": {},
        "extra_hosts": {},
        "docker_executor_workers": 8,
    }
    assert {name: shown[name] for name in documented} == documented


async def test_documented_defaults_are_lowered_to_what_the_policy_grants_and_shown():
    async with a_sandbox(DockerSandboxConfig()) as sandbox:
        config = sandbox.get_info().config
        assert (config["memory_limit"], config["cpu_limit"]) == ("512m", 1.0)
        assert (config["network"], config["network_enabled"]) == ("none", False)
        assert sorted(config["tools_config"]) == ["file_operation", "python_executor", "shell_executor"]


async def test_a_whole_dumped_model_asks_for_no_more_than_its_changes():
    """Programs commonly pass every field, and a default among them is no wish."""
    async with a_sandbox({**DockerSandboxConfig().model_dump(), "memory_limit": "128m"}) as sandbox:
        assert sandbox.get_info().config["memory_limit"] == "128m"


async def test_what_is_asked_for_and_granted_is_what_the_program_has():
    wanted = DockerSandboxConfig(
        memory_limit="128m",
        cpu_limit=0.5,
        working_dir="/work",
        env_vars={"GREETING": "hello world"},
        resource_limits={"pids_limit": 64, "tmp_size": "8m", "ttl": 600},
        timeout=20,
        network_enabled=False,
    )
    async with a_sandbox(wanted) as sandbox:
        config = sandbox.get_info().config
        assert (config["memory_limit"], config["cpu_limit"], config["timeout"]) == ("128m", 0.5, 20)
        assert (config["resource_limits"]["pids_limit"], config["resource_limits"]["tmp_size"]) == (64, 8 * 1024**2)
        result = await sandbox.execute_command("pwd; echo $GREETING; df --output=size -k /tmp | tail -1")
        assert (result.stdout or "").split() == ["/work", "hello", "world", "8192"]


@pytest.mark.parametrize(
    ("asked", "rule"),
    [
        ({"privileged": True}, "privileged"),
        ({"network": "host"}, "network"),
        ({"network": "container:other"}, "network"),
        ({"volumes": {"/": {"bind": "/host", "mode": "rw"}}}, "volumes"),
        ({"volumes": {"/var/run/docker.sock": {"bind": "/docker.sock", "mode": "ro"}}}, "volumes"),
        ({"ports": {"80/tcp": 8080}}, "ports"),
        ({"network_enabled": True, "ports": {"80/tcp": ("0.0.0.0", 8080)}}, "ports"),
        ({"platform": "linux/s390x"}, "platform"),
        ({"memory_limit": "100g"}, "resources"),
        ({"cpu_limit": 64}, "resources"),
        ({"timeout": 100_000}, "resources"),
        ({"resource_limits": {"pids_limit": 5000}}, "resources"),
        ({"resource_limits": {"ttl": 10**7}}, "resources"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
async def test_what_may_not_be_had_is_refused_by_rule_and_never_weakened(asked: dict[str, Any], rule: str):
    sandbox = a_sandbox(DockerSandboxConfig(**asked))
    with pytest.raises(PermissionError) as caught:
        await sandbox.start()
    assert isinstance(caught.value, PolicyDenied)
    assert caught.value.metadata["rule"] == rule
    assert f"(policy rule: {rule})" in str(caught.value)


@pytest.mark.parametrize(
    "asked",
    [
        {"memory_limit": "0"},
        {"memory_limit": "-1"},
        {"memory_limit": "1e99"},
        {"memory_limit": "5 apples"},
        {"memory_limit": "12t"},
        {"cpu_limit": 0},
        {"cpu_limit": -1},
        {"cpu_limit": 1e99},
        {"cpu_limit": float("nan")},
        {"cpu_limit": float("inf")},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": "soon"},
        {"timeout": 10**400},
        {"resource_limits": {"memory": 1}},
        {"resource_limits": {"tmp_size": "-5m"}},
        {"env_vars": {"A": "half a character: \ud800"}},
        {"image": ""},
        {"memroy_limit": "1g"},
    ],
    ids=lambda asked: ascii(asked)[:40],
)
def test_a_malformed_configuration_is_a_value_error_that_names_the_field(asked: dict[str, Any]):
    for make in (lambda: DockerSandboxConfig(**asked), lambda: a_sandbox(asked)):
        with pytest.raises(ValueError, match=next(iter(asked))):
            make()


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"memory_limit": "1m"}, "spec.memory_limit_bytes"),
        ({"env_vars": {"LD_PRELOAD": "/tmp/x.so"}}, "spec.env_vars"),
        ({"env_vars": {"A=B": "x"}}, "spec.env_vars"),
        ({"env_vars": {"A": "x\0y"}}, "spec.env_vars"),
        ({"working_dir": "/etc"}, "spec.working_dir"),
        ({"working_dir": "here"}, "spec.working_dir"),
        ({"working_dir": "/a/../etc"}, "spec.working_dir"),
        ({"tools_config": {"python_executor": {"colour": "red"}}}, "spec.tools.python_executor.colour"),
        ({"memory_limit": "64m", "resource_limits": {"working_dir_size": "64m"}}, "spec.working_dir_size_bytes"),
    ],
    ids=str,
)
async def test_what_makes_no_sense_to_the_daemon_is_a_value_error_too(asked: dict[str, Any], field: str):
    with pytest.raises(InvalidRequest, match=field) as caught:
        await a_sandbox(DockerSandboxConfig(**asked)).start()
    assert [violation.field for violation in caught.value.violations] == [field]


async def test_an_image_that_is_nowhere_is_named_with_what_to_do():
    with pytest.raises(ImageNotFound, match="'no/such-image:1' not found") as caught:
        await a_sandbox(DockerSandboxConfig(image="no/such-image:1")).start()
    assert "images.aliases" in str(caught.value)
