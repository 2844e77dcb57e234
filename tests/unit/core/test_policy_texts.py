"""What policy calls malformed in names, paths, environments and options."""

from __future__ import annotations

import math

import pytest

from enclaved.core.policy import check_execution_id, check_id, check_labels
from enclaved.errors import InvalidRequest
from tests.unit.core.asking import denied, granted, malformed

# -- image, directory, environment --------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["", " ", "a b", "a\n", "a\0", "x" * 513, "imagé", "\ud800"])
def test_what_is_no_name_of_an_image_is_malformed(image: str) -> None:
    found = malformed(image=image)

    assert list(found) == ["spec.image"]
    assert len(found["spec.image"].encode()) < 200


@pytest.mark.parametrize(
    "path",
    [
        "",
        "sandbox",
        "/",
        "//sandbox",
        "/sandbox/",
        "/a/../b",
        "/a/./b",
        "/..",
        "/a b",
        "/a:b",
        "/a,b",
        "/a\nb",
        "/a\0",
        "/\ud800",
        "/" + "é" * 128,
        "/proc",
        "/proc/self/cwd",
        "/sys",
        "/dev/shm",
        "/etc",
        "/usr/local",
        "/bin",
        "/lib64",
        "/run/enclave",
        "/tmp",
        "/tmp/work",
        "/var/lib",
        "/opt",
    ],
)
def test_a_working_directory_that_is_odd_or_the_systems_is_malformed(path: str) -> None:
    found = malformed(working_dir=path)

    assert list(found) == ["spec.working_dir"]
    assert "/sandbox" in found["spec.working_dir"]


@pytest.mark.parametrize("path", ["/sandbox", "/workspace", "/root", "/home/me", "/opt/app", "/library", "/工作"])
def test_a_working_directory_of_its_own_is_granted(path: str) -> None:
    assert granted(working_dir=path).working_dir == path


@pytest.mark.parametrize("name", ["", "1A", "A B", "A=B", "A\0", "A\n", "É", "A-B", "\ud800", "x" * 99 + "="])
def test_what_is_no_name_of_a_variable_is_malformed(name: str) -> None:
    found = malformed(env_vars={name: "1"})

    assert list(found) == ["spec.env_vars"]
    assert "must match" in found["spec.env_vars"]


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "GLIBC_TUNABLES", "GCONV_PATH", "BASH_ENV", "ENCLAVED_X"],
)
def test_loader_and_reserved_variables_are_malformed(name: str) -> None:
    assert name in malformed(env_vars={name: "1"})["spec.env_vars"]


@pytest.mark.parametrize("variables", [{"A": "a\0b"}, {"A": "\ud800"}, {"A": "x" * 1_000_000}])
def test_values_that_no_environment_can_hold_are_malformed(variables: dict[str, str]) -> None:
    assert list(malformed(env_vars=variables)) == ["spec.env_vars"]


def test_an_environment_has_a_bound_in_entries_and_bytes() -> None:
    assert "257 entries" in malformed(env_vars={f"A{i}": "" for i in range(257)})["spec.env_vars"]
    assert len(granted(env_vars={f"A{i}": "" for i in range(256)}).env_vars) == 256
    assert granted(env_vars={"A": "x" * (64 * 1024 - 1)})
    assert malformed(env_vars={"A": "x" * (64 * 1024)})


def test_every_malformed_field_is_named_at_once() -> None:
    found = malformed(memory_limit_bytes=0, cpu_limit=math.nan, image="", working_dir="x", tools={"nope": {}})

    assert set(found) == {
        "spec.memory_limit_bytes",
        "spec.cpu_limit",
        "spec.image",
        "spec.working_dir",
        "spec.tools",
    }


# -- tools --------------------------------------------------------------------------------------------------------


def test_tools_are_enabled_by_their_canonical_names_with_their_options() -> None:
    assert granted(tools={}).tools == {}
    assert granted(tools={"bash": {"timeout": 5}, "python_executor": {}}).tools == {
        "shell_executor": {"timeout": 5},
        "python_executor": {},
    }
    assert granted(tools={"bash": {}, "shell_executor": {}}).tools == {"shell_executor": {}}


@pytest.mark.parametrize("name", ["nope", "notebook_executor", "command", "", "\ud800", "x" * 1000])
def test_an_unknown_or_internal_tool_is_malformed_and_the_others_are_listed(name: str) -> None:
    text = malformed(tools={name: {}})["spec.tools"]

    assert text.endswith("available: file_operation, python_executor, shell_executor")
    assert len(text.encode()) < 200


def test_options_are_checked_when_the_sandbox_is_made() -> None:
    assert "known ones: " in malformed(tools={"bash": {"nope": 1}})["spec.tools.shell_executor.nope"]
    assert list(malformed(tools={"bash": {"timeout": -1}})) == ["spec.tools.shell_executor.timeout"]
    assert list(malformed(tools={"bash": {"timeout": 1}, "shell_executor": {}})) == ["spec.tools.shell_executor"]
    error = denied(tools={"bash": {"timeout": 3601}})
    assert (error.rule, error.field) == ("resources", "spec.tools.shell_executor.timeout")


# -- ids and labels -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["a", "0", "my-box_1", "a" * 63])
def test_plain_ids_pass(value: str) -> None:
    check_id(value)
    check_execution_id(value.upper())


@pytest.mark.parametrize(
    "value",
    ["", "-a", "_a", "A/b", "../a", "a\r\n", "a\n", "a\0", "a b", "٣", "é", "\ud800", "a" * 65, "a" * 1_000_000],
)
def test_ids_with_anything_else_are_malformed_before_they_are_used(value: str) -> None:
    for check in (check_id, check_execution_id):
        with pytest.raises(InvalidRequest) as caught:
            check(value, "spec.id")
        assert [violation.field for violation in caught.value.violations] == ["spec.id"]
        assert len(str(caught.value).encode()) < 300


def test_ids_of_sandboxes_are_lower_case_and_a_little_shorter() -> None:
    for value in ("A", "a" * 64):
        check_execution_id(value)
        with pytest.raises(InvalidRequest):
            check_id(value)


def test_plain_labels_pass() -> None:
    check_labels({})
    check_labels({f"team.example/key-{i}_x": "v" * 256 for i in range(64)})


@pytest.mark.parametrize(
    "labels",
    [
        {"enclaved.id": "x"},
        {"Enclaved.hmac": "x"},
        {"": "x"},
        {"a b": "x"},
        {"a\n": "x"},
        {"é": "x"},
        {"k" * 64: "x"},
        {"k": "v" * 257},
        {"k": "\0"},
        {"k": "\ud800"},
        {str(i): "" for i in range(65)},
    ],
)
def test_labels_in_our_namespace_or_out_of_bounds_are_malformed(labels: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_labels(labels)

    assert [violation.field for violation in caught.value.violations] == ["labels"]
    assert len(str(caught.value).encode()) < 300
