"""All attacks and controls, in the order in which they are shown."""

from __future__ import annotations

from typing import Final

from enclaved.doctor.attacks import (
    artefacts,
    clients,
    controls,
    escape,
    exits,
    http_clients,
    inputs,
    network,
    output,
    profile,
    protocol,
    requests,
    resources,
    tenancy,
    termination,
)
from enclaved.doctor.attacks.base import Attack

SUITE: Final[tuple[Attack, ...]] = (
    *controls.ATTACKS,
    *escape.ATTACKS,
    *profile.ATTACKS,
    *network.ATTACKS,
    *resources.ATTACKS,
    *tenancy.ATTACKS,
    *termination.ATTACKS,
    *exits.ATTACKS,
    *protocol.ATTACKS,
    *output.ATTACKS,
    *inputs.ATTACKS,
    *artefacts.ATTACKS,
    *requests.ATTACKS,
    *clients.ATTACKS,
    *http_clients.ATTACKS,
)
