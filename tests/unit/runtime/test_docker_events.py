"""What an engine tells of containers, read line by line; nonsense is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from enclaved.runtime.base import ContainerChange, ContainerEvent
from enclaved.runtime.docker.events import parse, query

ID = "ab" * 32


def line(action: str, kind: str = "container", at_ns: Any = 5, **attributes: str) -> bytes:
    actor = {"ID": ID if kind == "container" else "n" * 64, "Attributes": attributes}
    return json.dumps({"Type": kind, "Action": action, "Actor": actor, "timeNano": at_ns}).encode() + b"\n"


@pytest.mark.parametrize(
    ("action", "change"),
    [
        ("die", ContainerChange.ENDED),
        ("destroy", ContainerChange.REMOVED),
        ("unpause", ContainerChange.RESUMED),
        ("exec_create: sh -c 'echo: x'", ContainerChange.COMMAND_RUN),
        ("extract-to-dir", ContainerChange.FILES_COPIED),
    ],
)
def test_an_event_says_what_happened_to_which_container(action: str, change: ContainerChange):
    assert parse(line(action, exitCode="137")) == ContainerEvent(ID, change, 5)


def test_a_network_counts_where_it_is_one():
    told = parse(line("connect", "network", container=ID, type="bridge"))
    assert told == ContainerEvent(ID, ContainerChange.NETWORK_CONNECTED, 5)
    assert parse(line("connect", "network", container=ID, type="null")) is None
    for name in ("enclaved-0123abcd", "enclaved-0123abcd-quarantine"):
        assert parse(line("connect", "network", container=ID, type="bridge", name=name)) is None


@pytest.mark.parametrize(
    "nonsense",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"Type": "container", "Action": "die", "Actor": 3, "timeNano": 1}',
        b'{"Type": "container", "Action": "die", "Actor": {"ID": 3}, "timeNano": 1}',
        b'{"Type": "container", "Action": {"a": 1}, "Actor": {"ID": "x"}, "timeNano": 1}',
        line("die", at_ns="soon"),
        line("die", at_ns=True),
        line("create"),
        line("connect", "network"),
    ],
)
def test_what_makes_no_sense_is_left_out(nonsense: bytes):
    assert parse(nonsense) is None


def test_events_are_asked_for_from_a_moment_on_to_the_nanosecond():
    assert "since" not in query(0)
    assert query(1_795_440_074_000_000_007)["since"] == "1795440074.000000007"
    asked = json.loads(query(0)["filters"])
    assert asked["type"] == ["container", "network"]
    assert {"die", "destroy", "update", "connect"} <= set(asked["event"])
