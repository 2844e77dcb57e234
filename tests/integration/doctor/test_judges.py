"""Where nothing protects, the judges of the attacks must see the escapes: the same programs, the same judges."""

from __future__ import annotations

from pathlib import Path

import pytest

from enclaved.doctor.attacks.base import Attack, Outcome
from enclaved.doctor.attacks.suite import SUITE
from tests.integration.doctor.weak import weak_place

PROGRAMS = {attack.id: attack for attack in SUITE if attack.program is not None}
CATEGORIES = ("escape", "profile", "network", "resources", "tenancy")
ALSO = (
    "termination.detached-child",
    "protocol.signals-to-the-guest",
    "protocol.traces-the-guest",
)
# What holds even there: the kernel lacks the second calling convention, the engine's networks lack version 6, a network
# has abstract sockets of its own, and the engine leaves no descriptors and no writable control groups. Scores, locked
# memory and priorities need capabilities that not every host has to give; the processor is as fast as it is idle.
HOLD_ANYWHERE = {
    "escape.control-groups",
    "escape.leaked-descriptors",
    "network.abstract-sockets-of-the-host",
    "network.routes-of-version-6",
    "profile.other-calling-convention",
    "profile.out-of-memory-score",
    "profile.priorities",
    "resources.locked-memory",
    "resources.processor",
}


def chosen() -> list[Attack]:
    return [attack for name, attack in PROGRAMS.items() if name.partition(".")[0] in CATEGORIES or name in ALSO]


@pytest.mark.timeout(900)
async def test_without_protections_the_judges_see_every_escape(short_directory: Path) -> None:
    async with weak_place(short_directory) as place:
        found = {attack.id: await place.judged(attack) for attack in chosen()}

    unseen = {name: judgement for name, judgement in found.items() if judgement.outcome is not Outcome.ESCAPED}
    assert {name: judgement.why for name, judgement in unseen.items() if name not in HOLD_ANYWHERE} == {}
    assert len(found) - len(unseen) >= 45


async def test_whoever_is_reached_knows_it_whatever_the_program_says(short_directory: Path) -> None:
    """The programs of these tell of refusals only: those who were reached are the witnesses."""
    async with weak_place(short_directory) as place:
        network = await place.judged(PROGRAMS["network.services-of-the-host"])
        socket = await place.judged(PROGRAMS["escape.sockets-of-the-host"])
        file = await place.judged(PROGRAMS["escape.roots-of-others"])
        neighbour = await place.judged(PROGRAMS["tenancy.loopback"])

    assert "it reached a port of the host" in network.why
    assert "it reached a socket of the host" in socket.why
    assert file.why == "it read a file of the host"
    assert neighbour.why == "it reached a neighbour"
