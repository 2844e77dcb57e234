"""Very many who want a child at once, and a template that is slow or can make none."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator

import pytest

from enclaved.agent.guest.children import Child
from enclaved.agent.guest.claims import encode_claim
from enclaved.agent.guest.guest import Guest
from enclaved.agent.guest.handover import receive_fds
from enclaved.agent.guest.limits import OPEN_FILES_RESERVED, SPAWN_DEADLINE_S, SPAWN_LOST_S, SPAWNS_AT_ONCE
from enclaved.agent.guest.template import why_not

MANY = 100
LONG_AGO_S = 2 * SPAWN_DEADLINE_S


class Template:
    """The other end of what the guest asks of its template, and who got a child or a reason."""

    def __init__(self, guest: Guest) -> None:
        ours, self.socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.socket.setblocking(False)
        self.guest, self.nursery = guest, guest.nursery
        self.nursery.template = ours
        self.asked: list[socket.socket] = []
        self.given: list[Child] = []
        self.reasons: list[str] = []

    def wish(self, count: int) -> None:
        for _ in range(count):
            self.nursery.request(object(), self.given.append, self.reasons.append)

    def take_requests(self) -> list[socket.socket]:
        """What the guest has asked for since the last time."""
        found: list[socket.socket] = []
        while True:
            try:
                _, (fd,) = receive_fds(self.socket, 16, 1)
            except BlockingIOError:
                self.asked += found
                return found
            found.append(socket.socket(fileno=fd))

    def make(self, request: socket.socket) -> None:
        """Makes the child that was asked for first."""
        request.sendall(encode_claim({"hello": True}) + encode_claim({"ready": True}))
        self.guest.children.read(self.guest.children.spawning[0])

    def close(self) -> None:
        for child in [*self.given, *self.nursery.standby, *self.guest.children.spawning]:
            child.sock.close()
        for each in [*self.asked, self.socket]:
            each.close()
        assert self.nursery.template is not None
        self.nursery.template.close()


@pytest.fixture
def template(guest: Guest) -> Iterator[Template]:
    """See `Template`."""
    made = Template(guest)
    yield made
    made.take_requests()
    made.close()


def test_a_burst_asks_for_a_few_children_at_a_time_and_all_get_one(template: Template) -> None:
    template.wish(MANY)
    made = 0
    requests = template.take_requests()
    while made < MANY:
        assert len(template.guest.children.spawning) <= SPAWNS_AT_ONCE
        template.make(requests.pop(0))
        made += 1
        requests += template.take_requests()
    assert (len(template.given), template.reasons) == (MANY, [])
    assert len(requests) == 1  # the next standby child


def test_nobody_is_refused_as_long_as_children_become_ready(template: Template) -> None:
    template.wish(MANY)
    for wish in template.nursery.waiting:
        wish.since -= LONG_AGO_S
    template.make(template.take_requests()[0])
    template.nursery.look()
    assert template.reasons == []
    template.nursery.progress_at -= LONG_AGO_S
    template.nursery.look()
    assert len(template.reasons) == MANY - 1
    assert "leave no time for another one" in template.reasons[0]


def test_a_child_that_makes_others_wait_is_replaced_at_last(template: Template) -> None:
    template.wish(1)
    template.take_requests()
    (first, _) = template.guest.children.spawning
    first.asked_at -= SPAWN_LOST_S
    template.nursery.progress_at = time.monotonic()
    template.nursery.look()
    assert first.silent
    assert first not in template.guest.children.spawning
    assert len(template.take_requests()) == 1
    assert template.reasons == []


@pytest.mark.parametrize(
    ("number", "why"),
    [
        (errno.EAGAIN, "its limit of processes is reached"),
        (errno.ENOMEM, "its memory limit is reached"),
        (errno.ENOSYS, os.strerror(errno.ENOSYS)),
    ],
)
def test_who_waited_in_vain_is_told_what_the_template_said(template: Template, number: int, why: str) -> None:
    template.guest.children.helpers[os.getpid()] = lambda: None  # it is the template's number
    template.wish(1)
    request, _ = template.take_requests()
    request.sendall(encode_claim({"failed": why_not(number)}))
    request.close()
    template.guest.children.read(template.guest.children.spawning[0])
    assert template.guest.children.by_pid == {}
    for wish in template.nursery.waiting:
        wish.since -= LONG_AGO_S
    template.nursery.look()
    assert template.reasons == [f"no process could be started in the sandbox for 5 seconds: {why}"]


def test_a_reason_is_forgotten_when_a_child_becomes_ready(template: Template) -> None:
    template.nursery.on_failed("its limit of processes is reached")
    template.wish(1)
    template.make(template.take_requests()[0])
    assert template.nursery.spawn_failure == ""


def test_no_child_is_asked_for_with_the_last_descriptors(template: Template) -> None:
    template.nursery.descriptors.most = OPEN_FILES_RESERVED
    template.wish(1)
    assert template.take_requests() == []
    assert template.nursery.spawn_failure == "too many programs with their pipes run in it"
