"""Images that a role grants, and who has which role."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from enclaved.core.policy import PolicyLimits, Rules, ToolRule, VolumeRule
from enclaved.errors import PolicyDenied
from enclaved.model import EMBEDDED, LOCAL, Identity, IdentityKind, PortMapping, SandboxRequest, SandboxUpdate, Volume
from tests.unit.core.granting import DIGEST, OTHER, denied, granted, policy, role, with_role

# -- images -------------------------------------------------------------------------------------------------------


LISTED = ("python:3.11*", "ms-enclave/**", f"tools:1@{DIGEST}", "*.corp.example/base/*")


@pytest.mark.parametrize(
    ("image", "digest"),
    [
        ("python:3.11-slim", ""),
        ("docker.io/library/python:3.11", ""),
        ("library/python:3.11", ""),
        (f"python:3.11@{OTHER}", OTHER),
        ("ms-enclave/a/b:2", ""),
        ("tools:1", DIGEST),
        (f"tools:1@{DIGEST}", DIGEST),
        ("registry.corp.example/base/os", ""),
    ],
)
def test_an_image_on_the_list_is_granted_and_a_pinned_one_with_its_digest(image: str, digest: str) -> None:
    spec = granted(with_role(role(images=LISTED)), LOCAL, image=image).spec
    assert (spec.image, spec.image_digest) == (image, digest)


@pytest.mark.parametrize(
    "image",
    [
        *("python:3.12", "python", "evil/python:3.11", "evil.example/python:3.11", "ms-enclave", "xms-enclave/a"),
        *(f"tools:1@{OTHER}", "tools:2", "tools", "corp.example/base/os", "a/b.corp.example/base/os", DIGEST),
        *("registry.corp.example/base/os/deeper", "a" * 64),
    ],
)
def test_an_image_that_is_not_on_the_list_is_refused_with_the_list(image: str) -> None:
    error = denied(with_role(role(images=LISTED)), LOCAL, image=image)
    assert (error.rule, error.field) == ("image", "spec.image")
    assert error.limit.startswith("python:3.11*, ms-enclave/**")


@pytest.mark.parametrize(
    "registry",
    [
        *("localhost:5000", "127.0.0.1:5000", "10.1.2.3", "192.168.0.9:80", "169.254.169.254", "[::1]:5000", "0.0.0.0"),
        *("100.64.0.1:5000", "[fd00::1]:5000", "127.1:5000", "2130706433:5000", "0x7f.1:80", "a.localhost:80", "[::]"),
        *("LOCALHOST:5000", "LocalHost:5000", "A.Localhost:80", "Localhost", "VM", "vm:5000", "ip6-localhost:5000"),
        *("metadata.google.internal", "Metadata.Google.Internal:80", "localhost.localdomain:5000", "printer.local"),
    ],
)
def test_an_image_from_a_private_address_is_refused_unless_the_list_names_it(registry: str) -> None:
    error = denied(who=LOCAL, image=f"{registry}/x:1")
    assert error.rule == "image"
    assert "no entry of the operator's list names" in str(error)
    assert granted(with_role(role(images=("**", f"{registry}/*"))), LOCAL, image=f"{registry}/x:1")


@pytest.mark.parametrize(
    "registry",
    [
        *("127.0.0.0x1:5000", "0177.0.0.0x1", "localhost.:5000", "vm.internal."),
        *("[64:ff9b::7f00:1]:5000", "[2002:7f00:1::]", "[::ffff:127.0.0.1]", "[::ffff:8.8.8.8]"),
    ],
)
def test_an_address_in_an_odd_spelling_is_private_as_well(registry: str) -> None:
    assert denied(who=LOCAL, image=f"{registry}/x:1").rule == "image"


@pytest.mark.parametrize(
    ("entry", "yes", "no"),
    [
        ("docker.io/**", ("python", "a/b:2", "docker.io/a/b", "docker.io/localhost/x"), ("ghcr.io/a/b",)),
        ("index.docker.io/**", ("python", "a/b"), ("ghcr.io/a",)),
        ("docker.io/a/*", ("a/b", "docker.io/a/b:1"), ("ghcr.io/a/b", "python")),
        ("docker.io/*", ("python:3",), ("a/b", "ghcr.io/a")),
        ("library/**", ("python", "docker.io/library/python"), ("a/b", "ghcr.io/a")),
        ("library/py*", ("python:3",), ("ruby", "a/python")),
        ("ghcr.io/corp/**", ("ghcr.io/corp/a",), ("docker.io/ghcr.io/corp/a", "library/ghcr.io/corp/a")),
        ("localhost/**", ("localhost/a",), ("docker.io/localhost/a", "library/localhost/a")),
    ],
)
def test_an_entry_is_about_the_registry_that_it_says(entry: str, yes: tuple[str, ...], no: tuple[str, ...]) -> None:
    found = with_role(role(images=(entry,)))
    for image in yes:
        assert granted(found, LOCAL, image=image).spec.image == image
    for image in no:
        assert denied(found, LOCAL, image=image).rule == "image"


def test_a_pin_holds_beside_a_pattern_that_has_the_same_name() -> None:
    found = with_role(role(images=("**", f"tools:1@{DIGEST}")))
    assert granted(found, LOCAL, image="tools:1").spec.image_digest == DIGEST
    assert denied(found, LOCAL, image=f"tools:1@{OTHER}").rule == "image"


def test_images_by_digest_only() -> None:
    found = with_role(role(images=("**", f"python:3.11-slim@{DIGEST}"), images_by_digest=True))
    assert granted(found, LOCAL).spec.image_digest == DIGEST
    assert granted(found, LOCAL, image=f"other@{OTHER}").spec.image_digest == OTHER
    assert "names no digest" in str(denied(found, LOCAL, image="other:1"))


def test_whether_images_are_pulled_is_in_the_spec() -> None:
    assert granted(who=LOCAL).spec.may_pull
    found = with_role(role(may_pull=False))
    assert not granted(found, LOCAL).spec.may_pull
    found.check_image("anything", LOCAL)
    with pytest.raises(PolicyDenied) as caught:
        found.check_pull("anything", LOCAL)
    assert caught.value.rule == "pull"


# -- who has which role -------------------------------------------------------------------------------------------


CI = Identity("ci-7", "other", kind=IdentityKind.TOKEN)


def test_users_of_a_role_have_it_whatever_their_token_says_and_names_count_before_patterns() -> None:
    roles = {
        "default": role(),
        "wide": role(name="wide", users=("token:ci-*",)),
        "exact": role(name="exact", users=("token:ci-7", "embedded")),
    }
    found = policy(Rules(PolicyLimits(), roles))
    assert found.role(CI).name == "exact"
    assert found.role(replace(CI, name="ci-8")).name == "wide"
    assert found.role(EMBEDDED).name == "exact"
    assert found.role(LOCAL).name == "default"
    assert found.role(replace(CI, name="ci-7", kind=IdentityKind.API_KEY, role="default")).name == "default"


def test_a_role_that_is_gone_grants_nothing() -> None:
    for act in (
        lambda: policy().admit(SandboxRequest(), CI),
        lambda: policy().change(granted().spec, SandboxUpdate(ttl_s=5), CI),
        lambda: policy().check_image("x", CI),
    ):
        with pytest.raises(PolicyDenied) as caught:
            act()
        assert caught.value.rule == "role"


def test_a_change_is_decided_by_the_role_of_who_changes() -> None:
    small = role(name="small", limits=PolicyLimits(pids_default=64, pids_max=64))
    found = with_role(small)
    spec = granted(found, LOCAL).spec
    assert found.change(spec, SandboxUpdate(pids_limit=512), LOCAL).pids_limit == 512
    with pytest.raises(PolicyDenied) as caught:
        found.change(spec, SandboxUpdate(pids_limit=512), replace(CI, role="small"))
    assert caught.value.limit == "64"


def test_a_sandbox_that_another_role_made_is_covered_only_if_the_own_role_grants_it() -> None:
    found = policy()
    found.covers(granted(found, EMBEDDED).spec, LOCAL)
    found.covers(granted(found, LOCAL).spec, EMBEDDED)
    for rule, narrow in (
        ("tool_options", {"tool_options": {"python_executor": ToolRule(forced={"blocked_modules": ["os"]})}}),
        ("tool_options", {"tools": ("python_executor",)}),
        ("image", {"images": (f"python:3.11-slim@{DIGEST}",)}),
        ("resources", {"limits": PolicyLimits(timeout_max_s=60.0)}),
        ("resources", {"limits": PolicyLimits(ttl_max_s=90000.0)}),
        ("resources", {"limits": PolicyLimits(output_max_bytes=100)}),
    ):
        other = with_role(role(name="narrow", **narrow))
        spec = granted(other, EMBEDDED, ttl_s=100000.0).spec
        with pytest.raises(PolicyDenied) as caught:
            other.covers(spec, replace(CI, role="narrow"))
        assert caught.value.rule == rule
    wide = granted(found, EMBEDDED, network_enabled=True, ports=(PortMapping("80"),)).spec
    found.covers(wide, EMBEDDED)
    with pytest.raises(PolicyDenied) as caught:
        found.covers(wide, LOCAL)
    assert caught.value.rule == "network"


@pytest.mark.parametrize(
    "narrow",
    [
        {"tools": ("python_executor",)},
        {"tool_options": {"shell_executor": ToolRule(forced={"blocked_commands": ["x"]})}},
    ],
)
def test_a_sandbox_with_commands_is_covered_only_by_a_role_that_has_them_so(narrow: dict[str, Any]) -> None:
    found = with_role(role(name="narrow", **narrow))
    spec = granted(found, EMBEDDED, tools={"python_executor": {}}).spec
    with pytest.raises(PolicyDenied) as caught:
        found.covers(spec, replace(CI, role="narrow"))
    assert caught.value.rule == "tool_options"
    # One without commands is nobody's trouble.
    found.covers(replace(spec, command_options=None), replace(CI, role="narrow"))


def test_a_sandbox_that_idles_for_longer_than_the_own_role_grants_is_not_covered() -> None:
    found = with_role(role(name="narrow", limits=PolicyLimits(idle_timeout_max_s=60.0)))
    with pytest.raises(PolicyDenied) as caught:
        found.covers(granted(found, EMBEDDED).spec, replace(CI, role="narrow"))
    assert caught.value.field == "spec.idle_timeout_s"


def test_what_a_role_granted_before_it_was_changed_is_not_covered_any_more() -> None:
    before = with_role(role(name="ci", networks=("none", "bridge")))
    who = replace(CI, role="ci")
    spec = granted(before, who, network_enabled=True).spec
    before.covers(spec, who)
    with pytest.raises(PolicyDenied) as caught:
        with_role(role(name="ci")).covers(spec, who)
    assert caught.value.rule == "network"


def test_a_sandbox_with_a_volume_is_covered_by_whoever_may_say_its_name() -> None:
    sets = VolumeRule("/srv/sets", name="sets")
    found = with_role(role(name="ci", volumes=(VolumeRule("/srv/more", writable=True, name="all"), sets)))
    who = replace(CI, role="ci")
    for asked in ("sets", "sets/small", "all/x"):
        found.covers(granted(found, who, volumes=(Volume(asked, "/data", "ro"),)).spec, who)
    spec = granted(found, who, volumes=(Volume("all/x", "/data", "rw"),)).spec
    found.covers(spec, who)
    narrow = role(name="narrow", volumes=(VolumeRule("/srv", name="srv"),))
    with pytest.raises(PolicyDenied) as caught:
        with_role(narrow).covers(spec, replace(CI, role="narrow"))
    assert caught.value.rule == "volumes"
