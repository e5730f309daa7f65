"""All reasons of the contract, and what their messages are filled with."""

from collections.abc import Mapping
from typing import Any, Final

from hub_client.v1.options_pb2 import Reason

REASONS: Final = [value for value in Reason.values() if value != Reason.REASON_UNSPECIFIED]
FACTS: Final[Mapping[str, Any]] = {
    "required": "SERVICE",
    "feature": "enable_rag",
    "resource": "user",
    "limit": "3",
    "subject": "max_sessions",
    "last_seq": "7",
    "status": "active",
    "id": "an id",
    "size_bytes": "67108865",
}
