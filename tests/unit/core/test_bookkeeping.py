"""What is written down at once, and what together."""

from __future__ import annotations

from collections.abc import Mapping

from enclaved.core import bookkeeping
from enclaved.core.bookkeeping import Bookkeeping
from enclaved.core.execution_rows import ExecutionRow
from enclaved.model import Finished, Verdict
from tests.unit.core.scripted import World, until

FINISHED = Finished(Verdict.EXITED, exit_code=0)


class Writes:
    """Remembers each write."""

    def __init__(self) -> None:
        self.made: list[object] = []

    def save(self, row: ExecutionRow) -> None:
        self.made.append(row.id)

    def settle(self, settled: Mapping[str, Finished | None]) -> None:
        self.made.append(dict(settled))


async def test_ends_are_written_together_soon_and_the_last_word_on_each_counts() -> None:
    writes = Writes()
    books = Bookkeeping(writes)
    books.finish("a", FINISHED)
    books.finish("b", FINISHED)
    books.forget("a")
    assert writes.made == []
    await until(lambda: writes.made != [])
    assert writes.made == [{"a": None, "b": FINISHED}]
    books.settle()
    assert len(writes.made) == 1


async def test_not_too_many_wait() -> None:
    writes = Writes()
    books = Bookkeeping(writes)
    for number in range(bookkeeping.SETTLE_AT_MOST):
        books.forget(str(number))
    assert len(writes.made) == 1


async def test_what_is_said_of_an_id_is_written_before_it_is_used_again(world: World) -> None:
    await world.guest()
    row = world.ledger.rows[(await world.open(execution_id="a")).id]
    writes = Writes()
    books = Bookkeeping(writes)
    books.forget("a")
    books.save(row)
    assert writes.made == [{"a": None}, "a"]
