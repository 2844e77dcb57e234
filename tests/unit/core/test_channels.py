"""Which channel new sandboxes get."""

from __future__ import annotations

import pytest

from enclaved.core.channels import Channels
from enclaved.errors import EngineRefused
from enclaved.metrics import Metrics
from enclaved.model import Channel

UNSEEN = EngineRefused("create a container", "bind source path does not exist", files_unseen=True)
OTHER = EngineRefused("create a container", "no")


def shown(metrics: Metrics) -> dict[str, float]:
    return {each.value: metrics.value("enclaved_engine_channel", channel=each.value) for each in Channel}


def test_the_first_sandbox_shows_it() -> None:
    metrics = Metrics(version="0")
    channels = Channels("auto", metrics)
    assert (channels.known, channels.current, shown(metrics)) == (None, "socket", {"socket": 0, "attach": 0})
    assert channels.other_after(OTHER) is None
    assert channels.other_after(UNSEEN) is Channel.ATTACH
    assert channels.current is Channel.SOCKET  # until it has worked
    channels.works(Channel.ATTACH)
    assert (channels.known, channels.current, shown(metrics)) == ("attach", "attach", {"socket": 0, "attach": 1})
    assert channels.other_after(UNSEEN) is None


def test_an_image_that_finds_no_socket_changes_nothing_where_another_one_found_it() -> None:
    channels = Channels("auto")
    channels.works(Channel.SOCKET)
    assert channels.other_after(UNSEEN) is None


@pytest.mark.parametrize("wanted", ["socket", "attach"])
def test_what_is_configured_stays(wanted: str) -> None:
    metrics = Metrics(version="0")
    channels = Channels(wanted, metrics)
    assert (channels.known, channels.current) == (wanted, wanted)
    assert shown(metrics)[wanted] == 1
    assert channels.other_after(UNSEEN) is None
