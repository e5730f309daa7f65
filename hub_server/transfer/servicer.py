"""Exports on the wire: rows as records, and the summary that tells of them."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Final

from google.protobuf.message import Message

from hub_client.v1 import export_pb2 as pb
from hub_server.caller import Caller
from hub_server.convert import timestamp_to_pb
from hub_server.transfer.records import record_of
from hub_server.transfer.service import Export

# Fields of the summary, by the kind of record they count.
_COUNTED: Final = {
    "reservation": "reservations",
    "memory": "memories",
    "memory_revision": "memory_revisions",
    "session": "sessions",
    "message": "messages",
    "document": "documents",
    "chunk": "chunks",
    "retrieval": "retrievals",
}
_SEVEN_BITS: Final = 0x7F


class Tally:
    """What records come to: how many, of which kinds, and their digest."""

    def __init__(self) -> None:
        """Nothing was counted yet."""
        self._kinds: Counter[str] = Counter()
        self._digest = hashlib.sha256()

    def add(self, record: pb.ExportRecord) -> None:
        """Count a record."""
        self._kinds[record.WhichOneof("record") or ""] += 1
        encoded = record.SerializeToString(deterministic=True)
        self._digest.update(_varint(len(encoded)))
        self._digest.update(encoded)

    def summary(self) -> pb.ExportSummary:
        """Return what was counted, without a time."""
        digest = self._digest.digest()
        summary = pb.ExportSummary(records=self._kinds.total(), sha256=digest)
        for kind, field in _COUNTED.items():
            setattr(summary, field, self._kinds[kind])
        return summary


class ExportFeed:
    """An export on the wire."""

    def __init__(self, export: Export) -> None:
        """Send what the export tells."""
        self._export = export
        self._tally = Tally()
        self._rest: Sequence[pb.ExportRecord] = ()  # read, and not sent yet
        self.is_over = False

    async def read(self, caller: Caller) -> Sequence[Message]:
        """Return what to send next. Raises NOT_FOUND or ETAG_MISMATCH."""
        if not self._rest:
            told = await self._export.page(caller)
            self._rest = [record_of(kind, row) for kind, row in told] or [self._summary()]
        return [pb.ExportUserResponse(export_record=record) for record in self._rest]

    def sent(self, count: int) -> None:
        """Note that so many of what was read last were sent."""
        for record in self._rest[:count]:
            self.is_over = record.HasField("summary")
            self._tally.add(record)
        self._rest = self._rest[count:]

    async def wait(self) -> None:
        """Return at once: there is more."""

    def close(self) -> None:
        """Hold nothing any more."""
        self._rest = ()

    def _summary(self) -> pb.ExportRecord:
        summary = self._tally.summary()
        if (began_at := timestamp_to_pb(self._export.began_at)) is not None:
            summary.exported_at.CopyFrom(began_at)
        return pb.ExportRecord(summary=summary)


def _varint(number: int) -> bytes:
    """Return a number as protobuf writes lengths."""
    parts = bytearray()
    while number > _SEVEN_BITS:
        parts.append(number & _SEVEN_BITS | _SEVEN_BITS + 1)
        number >>= 7
    parts.append(number)
    return bytes(parts)
