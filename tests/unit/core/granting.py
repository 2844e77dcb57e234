"""Roles that grant what the built-in ones do or more, and what they answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from enclaved.core.policy import Admission, Policy, PolicyLimits, Role, Rules, built_in_rules
from enclaved.errors import InvalidRequest, PolicyDenied
from enclaved.model import EMBEDDED, Identity, SandboxRequest
from enclaved.tools.registry import ToolRegistry

DIGEST = "sha256:" + "a" * 64
OTHER = "sha256:" + "b" * 64
HOME = "/home/me/project"
BUILT_IN = built_in_rules(
    PolicyLimits(), working_dir=HOME, protected=("/home/me/.enclaved", "/home/me/project/run.sock")
)


def policy(rules: Rules = BUILT_IN) -> Policy:
    return Policy(PolicyLimits(), ToolRegistry.built_in(), machine="x86_64", rules=rules)


def role(**changes: Any) -> Role:
    """The role of the unix socket, changed."""
    return replace(BUILT_IN.roles["default"], **changes)


def with_role(changed: Role, **rules: Any) -> Policy:
    return policy(replace(BUILT_IN, roles={**BUILT_IN.roles, changed.name: changed}, **rules))


def granted(found: Policy | None = None, who: Identity = EMBEDDED, **asked: Any) -> Admission:
    return (found or policy()).admit(SandboxRequest(**asked), who)


def denied(found: Policy | None = None, who: Identity = EMBEDDED, **asked: Any) -> PolicyDenied:
    with pytest.raises(PolicyDenied) as caught:
        granted(found, who, **asked)
    return caught.value


def malformed(**asked: Any) -> list[str]:
    with pytest.raises(InvalidRequest) as caught:
        granted(**asked)
    return [violation.field for violation in caught.value.violations]
