"""Ends of processes that come in an order which no program can choose."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from enclaved.agent.guest.children import Child
from enclaved.agent.guest.claims import encode_claim
from enclaved.agent.guest.guest import Guest
from tests.unit.agent.guest.conftest import Deaths


@contextlib.contextmanager
def asked_for(guest: Guest) -> Iterator[tuple[Child, socket.socket]]:
    """A child that the template has been asked for. What is sent by the other end comes from this process's pid."""
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.setblocking(False)
    child = guest.children.add(ours)
    with theirs, contextlib.closing(ours):
        yield child, theirs


def test_a_stranger_that_ended_before_a_child_was_asked_for_does_not_end_it(guest: Guest, deaths: Deaths) -> None:
    """Numbers of processes are used again."""
    with asked_for(guest):
        deaths.pids = [os.getpid()]
        guest.children.reap()  # might have been the first child, which has not said its number yet
        with asked_for(guest) as (child, theirs):
            theirs.sendall(encode_claim({"hello": True}) + encode_claim({"ready": True}))
            guest.children.read(child)
            assert child.pid == os.getpid()
            assert guest.children.by_pid == {os.getpid(): child}
            assert list(guest.nursery.standby) == [child]
            assert not child.silent


def test_a_child_that_ended_before_its_number_was_known_is_gone(guest: Guest, deaths: Deaths) -> None:
    with asked_for(guest) as (child, theirs):
        theirs.sendall(encode_claim({"hello": True}) + encode_claim({"ready": True}))
        deaths.pids = [os.getpid()]
        guest.children.reap()
        guest.children.read(child)
        assert (guest.children.by_pid, list(guest.nursery.standby), guest.children.spawning) == ({}, [], [])


def test_deaths_of_strangers_are_not_kept_when_nobody_is_asked_for_nor_without_end(
    guest: Guest, deaths: Deaths
) -> None:
    with asked_for(guest) as (child, _):
        deaths.pids = list(range(10_000, 14_000))
        guest.children.reap()
        assert len(guest.children.early_exits) <= 1025
        guest.children.spawning.remove(child)
        deaths.pids = [20_000]
        guest.children.reap()
        assert guest.children.early_exits == {}
