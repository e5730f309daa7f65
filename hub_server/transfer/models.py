"""What of each table is exported, in which order, and what is not and why.

A test holds this to the tables: a column that is neither here nor left out fails it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import sqlalchemy as sa

from hub_server.chat.models import chat_messages, chat_sessions, token_reservations
from hub_server.context.models import context_records
from hub_server.identity.models import user_configs, user_usage, users
from hub_server.knowledge.models import chunks, document_files, documents, retrievals
from hub_server.memory.models import memory_revisions, memory_store
from hub_server.rows import Row
from hub_server.spaces import spaces

# Of every table: whose a row is follows from the import, and its place in a search is made anew.
COMMON: Final = {"tenant_id", "user_id", "space_seq"}


@dataclass(frozen=True)
class Children:
    """The rows that follow a row in an export, numbered without gaps."""

    kind: str
    number: str
    """The column of a child that numbers it."""

    first: Callable[[Row], int]
    """Returns the number of the first child of a row."""

    last: Callable[[Row], int]
    """Returns the number of the last child of a row."""

    alike: str = ""
    """A column of numbers that a row and its children share; empty = the key tells all."""


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

    instead: Mapping[str, str] = field(default_factory=dict)
    """Columns that are told otherwise than they are, as SQL of a row ``t``."""

    computed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What a record tells beside its columns: type and SQL of a row ``t``."""

    only: str = "true"
    """Which rows are told, as SQL of a row ``t``."""

    children: "Children | None" = None
    """The rows that follow each row; None = there are no such."""

    made_at: str = "t.created_at"
    """When a row was made by the clock of Postgres, as SQL of a row ``t``."""

    belongs: Mapping[str, str] = field(default_factory=dict)
    """Columns that name a row of the same user, with the kind of that row."""

    names_user: bool = True
    """Whether every row bears its user's id; else what it belongs to does."""

    space: str = ""
    """The kind of search space whose seqs the rows bear; empty = they are not searched."""

    placed: str = ""
    """The seq that a record ``x`` gets in an import, as SQL; empty = it bears none."""

    place: str = "space_seq"
    """The column of that seq."""

    otherwise: str = "DO NOTHING"
    """What an import does with a row that is there already, as SQL."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns that a record tells, in the order of the table."""
        skipped = COMMON - {"user_id"} if self.table is users else COMMON
        names = (column.name for column in self.table.c)
        return tuple(name for name in names if name not in skipped and name not in self.left_out)


# The next seq of a space, after those of the records before.
_NEXT: Final = ":space_seq ::bigint + x.place"
_CHANGE: Final = """
    t.space_seq - (SELECT min(r.space_seq) FROM memory_revisions r
                   WHERE r.tenant_id = :tenant_id ::uuid AND r.user_id = :user_id ::uuid)
"""
# A space begins at the number of the millisecond; see ImportRepository.seqs.
_BEGIN: Final = "(extract(epoch FROM clock_timestamp()) * 1000)::bigint"
# A memory bears the time of the hub that made it, which may be ahead.
_FIRST_REVISION: Final = """(
    SELECT r.created_at FROM memory_revisions r
    WHERE r.tenant_id = t.tenant_id AND r.memory_id = t.memory_id AND r.revision = 1)"""
_FILE_PARTS: Final = """(
    SELECT count(*)::int FROM document_files f
    WHERE f.tenant_id = :tenant_id ::uuid AND f.document_id = t.document_id)"""
_COUNTER: Final = "of a counter of searches, which every hub begins for itself"
_MOVING: Final = "a move to another model that is under way, which is to be asked for again"
_PROCESSING: Final = "the work of a hub on it, which another one begins anew"

# Neither are the two vectors of a row told while its space moves.
_SECOND: Final = dict.fromkeys(("next_embedding", "next_model"), _MOVING)
_SEARCHED: Final = """CASE WHEN t.next_model = (
        SELECT s.embedding_model FROM spaces s WHERE s.tenant_id = :tenant_id ::uuid
          AND s.user_id = :user_id ::uuid AND s.kind = '{kind}')
    THEN t.{told} ELSE t.{name} END"""


def _searched(kind: str) -> Mapping[str, str]:
    """Tell the one that searches use, though it has not taken the place of the first yet."""
    return {
        name: _SEARCHED.format(kind=kind, name=name, told=told)
        for name, told in (("embedding", "next_embedding"), ("embedding_model", "next_model"))
    }


# In the order of the records, and so that what a row follows from comes before it.
KINDS: Final = (
    Kind(
        "user",
        users,
        ("user_id",),
        left_out={
            "email_key": "follows from the email",
            "import_id": "a mark of the hub that imports him",
            "password_hash": "a secret: an imported user is given a new password",
            "erasure_id": "nobody exports who is being erased",
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
    Kind(
        "memory",
        memory_store,
        ("memory_id",),
        left_out={
            "is_active": "follows from the status",
            "deleted_at": "nothing is left of what was deleted, and it is not told",
            **_SECOND,
        },
        instead=_searched("memory"),
        only="t.deleted_at IS NULL",
        made_at=_FIRST_REVISION,
        children=Children(
            "memory_revision",
            "revision",
            lambda _: 1,
            lambda memory: int(memory["revision"]),
        ),
        space="memory",
        placed=_NEXT,
    ),
    Kind(
        "memory_revision",
        memory_revisions,
        ("memory_id", "revision"),
        # In which order memories were changed, which times do not always tell.
        computed={"change": ("bigint", _CHANGE)},
        belongs={"memory_id": "memory"},
        placed="x.change",
    ),
    Kind(
        "session",
        chat_sessions,
        ("session_id",),
        ("created_at", "session_id"),  # by the clock of Postgres, so that forks come later
        children=Children(
            "message",
            "seq",
            lambda session: int(session["parent_seq"]) + 1,
            lambda session: int(session["last_seq"]),
        ),
        belongs={"parent_session_id": "session"},
    ),
    Kind(
        "message",
        chat_messages,
        ("session_id", "seq"),
        left_out=_SECOND,
        instead=_searched("messages"),
        computed={"is_searchable": ("boolean", "t.space_seq IS NOT NULL")},
        belongs={"session_id": "session"},
        names_user=False,  # only of those that can be searched
        space="messages",
        placed=f"CASE WHEN x.is_searchable THEN {_NEXT} END",
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
        computed={"file_parts": ("integer", _FILE_PARTS)},
        children=Children(
            "chunk",
            "chunk_index",
            lambda _: 0,
            lambda document: int(document["chunk_count"]) - 1,
            alike="revision",
        ),
        space="knowledge",
        placed=f"CASE WHEN x.revision > 0 THEN {_NEXT} END",
    ),
    Kind(
        "chunk",
        chunks,
        ("chunk_id",),
        left_out=_SECOND,
        instead=_searched("knowledge"),
        belongs={"document_id": "document"},
    ),
    Kind("file_part", document_files, ("document_id", "part"), belongs={"document_id": "document"}),
    Kind(
        "space",  # after its rows: they are told as they are searched
        spaces,
        ("kind",),
        left_out=dict.fromkeys(("last_seq", "created_at", "updated_at"), _COUNTER),
        only="t.embedding_model IS NOT NULL",
        placed=_BEGIN,
        place="last_seq",
        # Its counter may be there.
        otherwise="""(tenant_id, user_id, kind) DO UPDATE
            SET embedding_model = excluded.embedding_model WHERE t.embedding_model IS NULL""",
    ),
    Kind("retrieval", retrievals, ("retrieval_id", "rank"), belongs={"session_id": "session"}),
    Kind("context", context_records, ("context_id",), belongs={"session_id": "session"}),
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
    "reembeddings": _MOVING,
    "vectors": "copies of vectors that searches make",
    "vector_spaces": "how far these copies are",
    "erasures": "what stays of those who are gone",
}
