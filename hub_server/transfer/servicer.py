"""Exports and imports on the wire: rows as records, and the summary that tells of them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from google.protobuf.message import Message

from hub_client.v1 import export_pb2 as pb
from hub_client.v1 import identity_pb2
from hub_server.caller import Caller
from hub_server.convert import timestamp_to_pb
from hub_server.errors import HubError
from hub_server.rows import Row
from hub_server.transfer.importing import Import
from hub_server.transfer.records import record_of, row_of
from hub_server.transfer.service import Export, Told

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
    "file_part": "file_parts",
    "context": "contexts",
}
_SEVEN_BITS: Final = 0x7F
# What is held of an import before it is stored, in records and in bytes.
_BATCH: Final = 200
_BATCH_BYTES: Final = 4 << 20


class Tally:
    """What records come to: how many, of which kinds, and their digest."""

    def __init__(self) -> None:
        """Nothing was counted yet."""
        self._kinds: Counter[str] = Counter()
        self._digest = hashlib.sha256()

    @property
    def records(self) -> int:
        """How many there were."""
        return self._kinds.total()

    def add(self, record: pb.ExportRecord) -> None:
        """Count a record."""
        self._kinds[record.WhichOneof("record") or ""] += 1
        encoded = record.SerializeToString(deterministic=True)
        self._digest.update(_varint(len(encoded)))
        self._digest.update(encoded)

    def summary(self) -> pb.ExportSummary:
        """Return what was counted, without a time."""
        digest = self._digest.digest()
        summary = pb.ExportSummary(records=self.records, sha256=digest)
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
        return [identity_pb2.ExportUserResponse(export_record=record) for record in self._rest]

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


class ImportIntake:
    """An import on the wire."""

    def __init__(self, importing: Import, user_to_pb: Callable[[Row], identity_pb2.User]) -> None:
        """Let ``importing`` take in what is sent."""
        self._import = importing
        self._user_to_pb = user_to_pb
        self._tally = Tally()
        self._batch: list[Told] = []
        self._bytes = 0
        self._summary: pb.ExportSummary | None = None

    @property
    def is_full(self) -> bool:
        """Whether a batch is there."""
        return len(self._batch) >= _BATCH or self._bytes >= _BATCH_BYTES

    def take(self, message: identity_pb2.ImportUserRequest) -> None:
        """Take the next record. Raises INVALID_FIELD."""
        record = message.export_record
        if self._summary is not None:
            raise HubError.invalid("export_record", "must not follow the summary")
        if record.HasField("summary"):
            self._summary = record.summary
            return
        self._batch.append(row_of(record))
        self._bytes += record.ByteSize()
        self._tally.add(record)

    async def store(self, caller: Caller) -> None:
        """Store the batch. Raises what ``Import.store`` raises."""
        batch, self._batch, self._bytes = self._batch, [], 0
        await self._import.store(caller, batch)

    async def finish(self, caller: Caller) -> identity_pb2.ImportUserResponse:
        """Let everybody see the user. Raises INVALID_FIELD and what ``Import`` raises."""
        if self._summary is None:
            raise HubError.invalid("export_record", "the stream ended before its summary")
        wanted = self._tally.summary()
        if self._summary.HasField("exported_at"):
            wanted.exported_at.CopyFrom(self._summary.exported_at)
        if self._summary != wanted:
            fault = "must be that of the records before it: the export was cut or changed"
            raise HubError.invalid("export_record.summary", fault)
        if self._batch or not self._tally.records:
            await self.store(caller)
        user = await self._import.finish(caller)
        return identity_pb2.ImportUserResponse(
            user=self._user_to_pb(user), already_here=not self._import.is_new
        )

    def close(self) -> None:
        """Hold nothing any more."""
        self._batch = []


def _varint(number: int) -> bytes:
    """Return a number as protobuf writes lengths."""
    parts = bytearray()
    while number > _SEVEN_BITS:
        parts.append(number & _SEVEN_BITS | _SEVEN_BITS + 1)
        number >>= 7
    parts.append(number)
    return bytes(parts)
