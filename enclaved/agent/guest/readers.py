"""From the journals to the daemon: readers subscribe, give credit, and get what it allows."""

from __future__ import annotations

from .journal import Reader
from .limits import MAX_PAYLOAD_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict

    from .execution import Execution
    from .link import Link


class Readers:
    """Serves the readers of all executions.

    ``on_full`` is set by whoever puts the guest together; it says again that a journal is full.
    """

    on_full: Callable[[Execution], None]

    def __init__(self, link: Link) -> None:
        self.link = link
        self.changed: Dict[str, Execution] = {}  # have something that readers have not seen

    def note(self, execution: Execution) -> None:
        """Lets the readers of an execution be served before the loop waits again."""
        self.changed[execution.name] = execution

    def follow(self, execution: Execution, subscription: Dict[str, Any]) -> None:
        """Adds a reader from the first byte on, to an execution that is new: there is nothing to say about it."""
        offsets = dict.fromkeys(execution.journal.end, 0)
        reader = Reader(int(subscription["reader"]), execution.journal, offsets, int(subscription["credit_bytes"]))
        reader.wants_whole = subscription.get("whole") is True
        execution.readers[reader.name] = reader

    def on_subscribe(self, execution: Execution, header: Dict[str, Any]) -> None:
        """Adds a reader at the offsets that it names; without them, where the journal starts."""
        journal = execution.journal
        first = journal.start()
        offsets = dict(first)
        for name, offset in header.get("offsets", {}).items():
            channel, offset = int(name), int(offset)
            if channel not in first or not first[channel] <= offset <= journal.end[channel]:
                kept = first.get(channel, 0)
                answer = {"type": "released", "channel": channel, "offset": offset, "first_offset": kept}
                self.link.send(dict(answer, execution=execution.name, reader=header["reader"]))
                return
            offsets[channel] = offset
        reader = Reader(int(header["reader"]), journal, offsets, int(header["credit_bytes"]))
        execution.readers[reader.name] = reader
        self.tell_place(execution, reader, offsets)
        self.note(execution)

    def tell_place(self, execution: Execution, reader: Reader, offsets: Dict[int, int]) -> None:
        """Says which offsets a reader gets next."""
        places = {str(channel): offset for channel, offset in offsets.items()}
        self.link.send({"type": "subscribed", "execution": execution.name, "reader": reader.name, "offsets": places})

    def on_credit(self, execution: Execution, header: Dict[str, Any]) -> None:
        """Lets a reader have more."""
        reader = execution.readers.get(header["reader"])
        if reader is not None:
            reader.credit += int(header["bytes"])
            self.note(execution)

    def on_unsubscribe(self, execution: Execution, header: Dict[str, Any]) -> None:
        """Forgets a reader."""
        execution.readers.pop(header["reader"], None)

    def serve(self) -> None:
        """Sends readers what their credit allows, where something has changed."""
        for execution in list(self.changed.values()):
            self.pump(execution)
        self.changed.clear()

    def pump(self, execution: Execution) -> None:
        """Sends the readers of one execution what their credit allows."""
        for reader in list(execution.readers.values()):
            if reader.wants_whole and not self.is_due(execution):
                continue
            for chunk in reader.chunks():
                header = {
                    "type": "output",
                    "execution": execution.name,
                    "reader": reader.name,
                    "channel": chunk.channel,
                    "offset": chunk.offset,
                    "time_s": round(chunk.time_s, 6),
                }
                if chunk.late:
                    header["late"] = True
                self.link.send(header, chunk.data)
            self.tell_released(execution, reader)
            if execution.state == "ended" and reader.at_end:
                self.link.send({"type": "end", "execution": execution.name, "reader": reader.name})
                del execution.readers[reader.name]

    @staticmethod
    def is_due(execution: Execution) -> bool:
        """Whether a reader that has no use for a part of the output gets what there is: at the end, or if it is much.

        To tell it of each line would wake the daemon for nothing.
        """
        journal = execution.journal
        alone = len(execution.readers) == 1  # another one may release what this one has not had
        return execution.state == "ended" or not alone or execution.told_full or journal.size >= MAX_PAYLOAD_BYTES

    def tell_released(self, execution: Execution, reader: Reader) -> None:
        """Tells a reader of output that went before it came to it, where no chunk follows that would show that.

        It may wait for just that output to know that it has seen all of a full journal.
        """
        places = reader.skip_released()
        if places is not None:
            self.tell_place(execution, reader, places)
            if execution.told_full:
                self.on_full(execution)
