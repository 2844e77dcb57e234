"""What the HTTP API shows of a sandbox."""

from __future__ import annotations

from dataclasses import replace

import pytest

from enclaved.gateway.bodies import SandboxStatus
from enclaved.gateway.views import status_of
from enclaved.model import SandboxState
from tests.service.core_fakes import BOX

OTHERS = {SandboxState.PAUSED: SandboxStatus.IDLE, SandboxState.DELETING: SandboxStatus.STOPPING}


@pytest.mark.parametrize("state", SandboxState)
def test_every_state_has_a_documented_word(state: SandboxState) -> None:
    wanted = OTHERS.get(state, state.value)
    assert status_of(replace(BOX, state=state), None) == wanted
    assert status_of(replace(BOX, state=state), "busy") == ("busy" if state is SandboxState.RUNNING else wanted)
