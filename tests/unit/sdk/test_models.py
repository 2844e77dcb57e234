"""What the documented configurations take, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ms_enclave._convert import memory_text
from ms_enclave._model.config import memory_bytes
from ms_enclave.sandbox.model import (
    DockerNotebookConfig,
    DockerSandboxConfig,
    ExecutionStatus,
    PythonExecutorConfig,
    SandboxConfig,
    SandboxManagerConfig,
    SandboxStatus,
    ToolExecutionRequest,
    ToolResult,
    VolcengineSandboxConfig,
)
from pydantic import ValidationError


def test_the_documented_defaults_are_these() -> None:
    shown = DockerSandboxConfig().model_dump(exclude_none=True)
    assert shown == {
        "timeout": 30,
        "tools_config": {},
        "working_dir": "/sandbox",
        "env_vars": {},
        "resource_limits": {},
        "image": "python:3.11-slim",
        "volumes": {},
        "ports": {},
        "network": "bridge",
        "extra_hosts": {},
        "memory_limit": "4g",
        "cpu_limit": 2.0,
        "network_enabled": True,
        "privileged": False,
        "remove_on_exit": True,
        "auto_resume": False,
        "pull_progress": False,
        "pull_progress_interval": 3.0,
        "docker_executor_workers": 8,
    }
    assert DockerSandboxConfig().model_fields_set == set()


@pytest.mark.parametrize("text", ["512m", "1G", "2g", "1024", "64K"])
def test_a_memory_limit_is_digits_and_an_optional_unit(text: str) -> None:
    assert DockerSandboxConfig(memory_limit=text).memory_limit == text


@pytest.mark.parametrize(
    "text", ["5 apples", "", "-1", "0", "0g", "1.5g", "1e99", "NaN", "512mb", "\uff11g", "512m\n", "9" * 40 + "g"]
)
def test_anything_else_is_no_memory_limit(text: str) -> None:
    with pytest.raises(ValidationError, match="Invalid memory limit format"):
        DockerSandboxConfig(memory_limit=text)


@given(st.integers(1, 2**63 - 1))
def test_a_size_that_is_written_and_read_is_the_same(size: int) -> None:
    assert memory_bytes(memory_text(size)) == size


def test_sizes_are_written_as_briefly_as_possible() -> None:
    assert [memory_text(size) for size in (512 * 1024**2, 4 * 1024**3, 1536, 1000)] == ["512m", "4g", "1536", "1000"]


@pytest.mark.parametrize("limit", [0, -1, 1e99, float("nan"), float("inf")])
def test_a_senseless_cpu_limit_is_refused(limit: float) -> None:
    with pytest.raises(ValidationError, match="CPU limit must be"):
        DockerSandboxConfig(cpu_limit=limit)


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e99, 10**400])
def test_a_senseless_timeout_is_refused(timeout: float) -> None:
    with pytest.raises(ValidationError, match="must be a number of seconds"):
        DockerSandboxConfig(timeout=timeout)


@pytest.mark.parametrize("name", ["pids_limit", "ttl", "tmp_size"])
def test_a_limit_beyond_all_numbers_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} must be a number"):
        DockerSandboxConfig(resource_limits={name: 10**400})


@pytest.mark.parametrize(
    "settings",
    [
        {"env_vars": {"A": "\ud800"}},
        {"env_vars": {"\ud800": "a"}},
        {"tools_config": ["\ud800"]},
        {"working_dir": "/\ud800"},
        {"command": ["echo", "\ud800"]},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_text_that_cannot_be_sent_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=rf"{next(iter(settings))}\n.*not valid Unicode"):
        DockerSandboxConfig(**settings)


def test_timeouts_print_as_they_were_given() -> None:
    assert [DockerSandboxConfig(timeout=t).model_dump_json(include={"timeout"}) for t in (5, 0, 0.3)] == [
        '{"timeout":5}',
        '{"timeout":0}',
        '{"timeout":0.3}',
    ]


def test_tools_are_a_list_of_names_or_names_with_options() -> None:
    expected = {"python_executor": {}, "shell_executor": {}}
    assert DockerSandboxConfig(tools_config=["python_executor", "shell_executor"]).tools_config == expected
    assert DockerSandboxConfig(tools_config=expected).tools_config == expected
    options = PythonExecutorConfig(timeout=5)
    assert DockerSandboxConfig(tools_config={"python_executor": options}).tools_config == {
        "python_executor": {"timeout": 5}
    }


def test_no_tools_is_not_the_same_as_tools_not_set() -> None:
    assert "tools_config" in DockerSandboxConfig(tools_config={}).model_fields_set
    assert "tools_config" not in DockerSandboxConfig().model_fields_set


@pytest.mark.parametrize("config", [SandboxConfig, DockerSandboxConfig, DockerNotebookConfig, SandboxManagerConfig])
def test_a_misspelt_field_is_an_error(config: Any) -> None:
    with pytest.raises(ValidationError, match="memory_limt"):
        config(memory_limt="1g")


def test_fields_that_are_kept_for_old_programs_are_accepted() -> None:
    assert DockerSandboxConfig(docker_executor_workers=4, pull_progress=True).docker_executor_workers == 4
    assert DockerNotebookConfig(host="0.0.0.0", port=1, token="t").image == "jupyter-kernel-gateway"


def test_a_field_that_is_set_later_is_checked_and_counts_as_set() -> None:
    config = DockerSandboxConfig()
    config.memory_limit = "1g"
    assert config.model_fields_set == {"memory_limit"}
    with pytest.raises(ValidationError, match="Invalid memory limit format"):
        config.memory_limit = "lots"


def test_a_dumped_default_in_a_dictionary_was_not_asked_for() -> None:
    """Programs pass whole dumped models; only what differs from the documented defaults is a request."""
    dumped = DockerSandboxConfig(memory_limit="1g", tools_config=["python_executor"]).model_dump()
    config = DockerSandboxConfig.from_dict(json.loads(json.dumps(dumped)))
    assert config.model_fields_set == {"memory_limit", "tools_config"}
    assert config.network_enabled is True


def test_a_dictionary_is_checked_even_where_it_is_not_sent() -> None:
    with pytest.raises(ValidationError):
        DockerSandboxConfig.from_dict({"network_enabled": "perhaps"})


def test_further_limits_have_known_names() -> None:
    given = {"pids_limit": 64, "tmp_size": "32m", "ttl": 0.5, "idle_timeout": 0}
    assert DockerSandboxConfig(resource_limits=given).resource_limits == given
    with pytest.raises(ValidationError, match=r"unknown limit 'cpus'; known are idle_timeout, pids_limit"):
        DockerSandboxConfig(resource_limits={"cpus": 1})


@pytest.mark.parametrize(
    "limits", [{"pids_limit": 0}, {"pids_limit": "many"}, {"ttl": 0}, {"idle_timeout": -1}, {"tmp_size": "lots"}]
)
def test_a_senseless_further_limit_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"must be|Invalid memory limit format"):
        DockerSandboxConfig(resource_limits=limits)


@pytest.mark.parametrize("volumes", [{"/data": {}}, {"/data": {"bind": "/x", "node": "ro"}}, {"/data": "/x"}])
def test_a_volume_says_where_it_is_bound(volumes: Any) -> None:
    with pytest.raises(ValidationError, match=r"bind|dictionary"):
        DockerSandboxConfig(volumes=volumes)


@pytest.mark.parametrize("target", [70000, "x", ("127.0.0.1", -1), "a:b:c"])
def test_a_port_goes_to_a_port(target: Any) -> None:
    with pytest.raises(ValidationError):
        DockerSandboxConfig(ports={"8080/tcp": target})


def test_a_manager_takes_no_negative_pool_and_no_empty_interval() -> None:
    for wrong in ({"pool_size": -1}, {"cleanup_interval": 0}, {"timeout": 0}, {"timeout": 1e99}):
        with pytest.raises(ValidationError):
            SandboxManagerConfig.model_validate(wrong)


def test_a_key_is_not_shown() -> None:
    assert "secret" not in repr(SandboxManagerConfig(api_key="secret"))


def test_enumerations_are_strings_that_print_their_names() -> None:
    assert SandboxStatus.RUNNING == "running"
    assert str(SandboxStatus.RUNNING) == f"{SandboxStatus.RUNNING}" == "SandboxStatus.RUNNING"
    assert json.dumps([ExecutionStatus.SUCCESS]) == '["success"]'


def test_a_result_dumps_the_documented_fields() -> None:
    result = ToolResult(tool_name="python_executor", status=ExecutionStatus.SUCCESS, output="42\n")
    assert result.success
    assert result.model_dump(mode="json", exclude={"timestamp"}) == {
        "status": "success",
        "execution_time": None,
        "tool_name": "python_executor",
        "output": "42\n",
        "metadata": {},
        "error": None,
    }


def test_a_request_needs_its_fields() -> None:
    with pytest.raises(ValidationError, match="tool_name"):
        ToolExecutionRequest.model_validate({"sandbox_id": "a"})


def test_the_names_of_a_hosted_service_say_what_to_use_instead() -> None:
    with pytest.raises(NotImplementedError, match=r"VolcengineSandboxConfig is not served.*SandboxType\.DOCKER"):
        VolcengineSandboxConfig(base_url="http://localhost")
