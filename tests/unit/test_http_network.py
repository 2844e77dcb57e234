"""What an HTTP body at its documented defaults gets of the network, where its caller's role grants one."""

from __future__ import annotations

from typing import Any

import pytest

from enclaved.gateway.bodies import DockerSandboxConfig, SandboxType, sandbox_request
from enclaved.model import EMBEDDED, LOCAL, Identity, Network
from tests.unit.core.granting import policy


def network_of(who: Identity, body: dict[str, Any]) -> Network:
    """The network of a sandbox; the role of who embeds a daemon grants one, the default role none."""
    request = sandbox_request(SandboxType.DOCKER, DockerSandboxConfig(**body))
    return policy().admit(request, who).spec.network


@pytest.mark.parametrize("body", [{"network_enabled": True}, {"network": "bridge"}])
def test_a_body_with_the_documented_default_gets_a_network_where_the_role_grants_one(body: dict[str, Any]) -> None:
    assert network_of(EMBEDDED, body) is Network.BRIDGE
    assert network_of(LOCAL, body) is Network.NONE


def test_a_body_that_says_nothing_of_a_network_gets_none_whatever_is_granted() -> None:
    assert network_of(EMBEDDED, {}) is Network.NONE
