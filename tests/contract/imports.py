"""Streams of ImportUser: what follows a first message, so that the import is whole."""

import hashlib
import uuid
from collections.abc import Sequence

from google.protobuf import timestamp_pb2
from google.protobuf.internal.encoder import _VarintBytes  # type: ignore[attr-defined]
from google.protobuf.message import DecodeError

from hub_client.v1 import (
    ExportedConfig,
    ExportedUsage,
    ExportedUser,
    ExportRecord,
    ExportSummary,
    ImportUserRequest,
)
from hub_client.v1.options_pb2 import BudgetPeriod


def _moment() -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=1_700_000_000)


def first_message() -> ImportUserRequest:
    """Return the first message of the import of a user whom nobody knows."""
    user = ExportedUser(
        user_id=str(uuid.uuid4()),
        email=f"{uuid.uuid4().hex}@example.org",
        is_active=True,
        created_at=_moment(),
        updated_at=_moment(),
    )
    return ImportUserRequest(export_record=ExportRecord(user=user))


def rest(first: bytes) -> list[bytes]:
    """Return what follows a first message; nothing when that is no user."""
    try:
        user = ImportUserRequest.FromString(first).export_record
    except DecodeError:
        return []
    config = ExportedConfig(
        config_id=str(uuid.uuid4()),
        budget_period=BudgetPeriod.BUDGET_PERIOD_LIFETIME,
        preferred_language="en",
        timezone="UTC",
        created_at=_moment(),
        updated_at=_moment(),
    )
    usage = ExportedUsage(created_at=_moment(), updated_at=_moment())
    records = [user, ExportRecord(config=config), ExportRecord(usage=usage)]
    summary = ExportSummary(records=len(records), sha256=digest(records))
    following = [*records[1:], ExportRecord(summary=summary)]
    return [ImportUserRequest(export_record=one).SerializeToString() for one in following]


def digest(records: Sequence[ExportRecord]) -> bytes:
    """Return the digest of records as the contract describes it."""
    found = hashlib.sha256()
    for record in records:
        encoded = record.SerializeToString(deterministic=True)
        found.update(_VarintBytes(len(encoded)) + encoded)
    return found.digest()
