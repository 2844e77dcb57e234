"""Requests to the policy, and its answers."""

from __future__ import annotations

from typing import Any

import pytest

from enclaved.core.policy import Admission, Policy, PolicyLimits
from enclaved.errors import InvalidRequest, PolicyDenied
from enclaved.model import SandboxRequest, SandboxSpec
from enclaved.tools.registry import ToolRegistry

MIB = 1024 * 1024
GIB = 1024 * MIB

LIMITS = PolicyLimits()


def policy(limits: PolicyLimits = LIMITS) -> Policy:
    return Policy(limits, ToolRegistry.built_in(), machine="x86_64")


def admit(limits: PolicyLimits = LIMITS, /, **asked: Any) -> Admission:
    return policy(limits).admit(SandboxRequest(**asked))


def granted(**asked: Any) -> SandboxSpec:
    return admit(**asked).spec


def denied(**asked: Any) -> PolicyDenied:
    with pytest.raises(PolicyDenied) as caught:
        admit(**asked)
    return caught.value


def malformed(**asked: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        admit(**asked)
    return {violation.field: violation.description for violation in caught.value.violations}
