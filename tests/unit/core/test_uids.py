"""The user ids of sandboxes."""

from __future__ import annotations

import pytest

from enclaved.core.uids import Uids
from enclaved.errors import LimitReached


def test_each_id_is_drawn_once_until_none_is_left():
    uids = Uids(5000, 3)
    assert {uids.draw() for _ in range(3)} == uids.taken == {5000, 5001, 5002}
    with pytest.raises(LimitReached, match="all 3 user ids"):
        uids.draw()
    uids.put_back(5001)
    assert uids.draw() == 5001


def test_somebody_elses_id_takes_none_and_gives_none_back():
    uids = Uids(5000, 2)
    for foreign in (1000, 4999, 5002):
        uids.take(foreign)
        uids.put_back(foreign)
    assert uids.taken == frozenset()
    uids.take(5001)
    assert (uids.draw(), uids.taken) == (5000, {5000, 5001})
