"""What the HTTP API shows of a sandbox."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enclaved.gateway.bodies import SandboxStatus
from enclaved.gateway.views import sandbox_info, status_of
from enclaved.model import Mount, Network, PortMapping, SandboxState
from tests.service.core_fakes import BOX

OTHERS = {SandboxState.PAUSED: SandboxStatus.IDLE, SandboxState.DELETING: SandboxStatus.STOPPING}


@pytest.mark.parametrize("state", SandboxState)
def test_every_state_has_a_documented_word(state: SandboxState) -> None:
    wanted = OTHERS.get(state, state.value)
    assert status_of(replace(BOX, state=state), None) == wanted
    assert status_of(replace(BOX, state=state), "busy") == ("busy" if state is SandboxState.RUNNING else wanted)


def test_what_was_granted_is_shown_as_it_was_asked_for() -> None:
    spec = replace(
        BOX.spec,
        network=Network.BRIDGE,
        mounts=(Mount("/srv/in", "/in", read_only=True), Mount("/srv/out", "/out", read_only=False)),
        ports=(PortMapping("8080/tcp"),),
        extra_hosts={"db": "10.0.0.1"},
        command=("sleep", "1"),
        platform="linux/amd64",
        runtime_class="runsc",
    )
    box = replace(
        BOX,
        spec=spec,
        owner="me",
        waived=("uid_separation",),
        command_execution_id="run",
        published_ports=(PortMapping("8080/tcp", host_port=32768),),
    )
    shown = sandbox_info(box, SandboxStatus.RUNNING, None, ())
    assert (
        shown["config"].items()
        >= {
            "network": "bridge",
            "network_enabled": True,
            "volumes": {"/srv/in": {"bind": "/in", "mode": "ro"}, "/srv/out": {"bind": "/out", "mode": "rw"}},
            "ports": {"8080/tcp": ["127.0.0.1", 0]},
            "extra_hosts": {"db": "10.0.0.1"},
            "command": ["sleep", "1"],
            "platform": "linux/amd64",
            "runtime_class": "runsc",
        }.items()
    )
    assert (
        shown["metadata"].items()
        >= {
            "owner": "me",
            "waived": ["uid_separation"],
            "command_execution_id": "run",
            "ports": {"8080/tcp": ["127.0.0.1", 32768]},
        }.items()
    )
    plain = sandbox_info(BOX, SandboxStatus.RUNNING, None, ())
    assert not {"waived", "ports", "command_execution_id"} & plain["metadata"].keys()
    assert not {"command", "platform", "runtime_class"} & plain["config"].keys()
