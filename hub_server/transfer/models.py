"""What of each table is exported, in which order, and what is not and why.

A test holds this to the tables: a column that is neither here nor left out fails it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from hub_server.chat.models import chat_messages, chat_sessions, token_reservations
from hub_server.identity.models import user_configs, user_usage, users
from hub_server.knowledge.models import chunks, documents, retrievals
from hub_server.memory.models import memory_store
from hub_server.rows import Row

# Of every table: whose a row is follows from the import, and its place in a search is made anew.
COMMON: Final = {"tenant_id", "user_id", "space_seq"}


@dataclass(frozen=True)
class Children:
    """The rows that follow a row in an export, numbered without gaps."""

    kind: str
    number: str
    """The column of a child that numbers it."""

    bound: str
    """The column of the parent that says which children are its own: see ``within``."""

    within: str
    """SQL that says so of a child ``t``; ``p.bound`` is what that column of its parent holds."""

    first: Callable[[Row], int]
    """Returns the number of the first child of a row."""

    last: Callable[[Row], int]
    """Returns the number of the last child of a row."""


@dataclass(frozen=True)
class Kind:
    """A table whose rows of one user are records of an export."""

    name: str
    """The field of ExportRecord."""

    table: sa.Table
    key: tuple[str, ...]
    """Columns that tell a row from the user's other ones."""

    order: tuple[str, ...] = ()
    """Columns by which records are ordered; empty = by the key."""

    left_out: Mapping[str, str] = field(default_factory=dict)
    """Columns that are not exported, with the reason."""

    computed: Mapping[str, str] = field(default_factory=dict)
    """What a record tells beside its columns, as SQL of a row ``t``."""

    children: "Children | None" = None
    """The rows that follow each row; None = there are no such."""

    space: str = ""
    """The kind of search space whose seqs the rows bear; empty = they are not searched."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns that a record tells, in the order of the table."""
        skipped = COMMON - {"user_id"} if self.table is users else COMMON
        names = (column.name for column in self.table.c)
        return tuple(name for name in names if name not in skipped and name not in self.left_out)


_PROCESSING: Final = "the work of a hub on it, which another one begins anew"

# In the order of the records, and so that what a row follows from comes before it.
KINDS: Final = (
    Kind(
        "user",
        users,
        ("user_id",),
        left_out={
            "email_key": "follows from the email",
            "password_hash": "a secret: an imported user is given a new password",
        },
    ),
    Kind("config", user_configs, ("config_id",)),
    Kind(
        "usage",
        user_usage,
        (),
        ("created_at",),
        left_out={"reserved_tokens": "the sum of what the reservations hold"},
    ),
    Kind("reservation", token_reservations, ("reservation_id",)),
    Kind("memory", memory_store, ("memory_id",), space="memory"),
    Kind(
        "session",
        chat_sessions,
        ("session_id",),
        ("created_at", "session_id"),  # by the clock of Postgres, so that forks come later
        children=Children(
            "message",
            "seq",
            "last_seq",
            "t.seq <= p.bound",
            lambda session: int(session["parent_seq"]) + 1,
            lambda session: int(session["last_seq"]),
        ),
    ),
    Kind(
        "message",
        chat_messages,
        ("session_id", "seq"),
        computed={"is_searchable": "t.space_seq IS NOT NULL"},
        space="messages",
    ),
    Kind(
        "document",
        documents,
        ("document_id",),
        left_out={
            "attempt": _PROCESSING,
            "first_attempt": _PROCESSING,
            "lease_expires_at": _PROCESSING,
        },
        children=Children(
            "chunk",
            "chunk_index",
            "revision",
            "t.revision = p.bound",
            lambda _: 0,
            lambda document: int(document["chunk_count"]) - 1,
        ),
        space="knowledge",
    ),
    Kind("chunk", chunks, ("chunk_id",)),
    Kind("retrieval", retrievals, ("retrieval_id", "rank")),
)
BY_NAME: Final = {kind.name: kind for kind in KINDS}

# Tables of a tenant that no export holds.
LEFT_OUT: Final = {
    "tenants": "the tenant's, not a user's",
    "default_configs": "the tenant's, not a user's",
    "credentials": "secrets: who imports a user makes new ones",
    "login_throttles": "guards one hub, and names nobody",
    "audit_events": "the tenant's own record of what was done at this hub: ListAuditEvents",
    "request_ids": "what retried calls are answered, for a day, by the hub that was called",
    "vectors": "copies of vectors that searches make",
    "vector_spaces": "how far these copies are",
    "spaces": "counters of searches, which every hub makes for itself",
}
