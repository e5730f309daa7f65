"""Somebody with rows in every table, and looks for what is left of him anywhere."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from psycopg import sql

from hub_client import errors
from hub_client.v1 import (
    AppendMessageRequest,
    BuildContextRequest,
    CreateSessionRequest,
    ForkSessionRequest,
    IngestDocumentRequest,
    LoginRequest,
    MemoryType,
    RecallRequest,
    ReembedSpaceRequest,
    RememberRequest,
    ReserveTokensRequest,
    Role,
    SearchMessagesRequest,
    SearchRequest,
    User,
)
from hub_server.database import metadata
from hub_server.ids import new_id
from tests.support import Hub, Tenant, settled

PASSWORD: Final = "a correct horse"
# By table, what tells copies of a row apart; all else of a copy is the same.
_COPIES: Final = {
    # All of one parent, and more than are removed together.
    "chat_sessions": (
        "'session_id', gen_random_uuid(), 'parent_session_id', (one).session_id",
        600,
    ),
    "chat_messages": ("'message_id', gen_random_uuid(), 'seq', 100 + n", 6_000),
    "memory_store": ("'memory_id', gen_random_uuid()", 1_000),
    "memory_revisions": ("'revision', 100 + n", 300),
    "documents": ("'document_id', gen_random_uuid()", 300),
    "chunks": ("'chunk_id', gen_random_uuid(), 'chunk_index', 100 + n", 1_500),
    "retrievals": ("'retrieval_id', gen_random_uuid()", 300),
    "token_reservations": ("'reservation_id', gen_random_uuid()", 200),
    "credentials": ("'credential_id', gen_random_uuid()", 100),
    "audit_events": ("'event_id', gen_random_uuid()", 600),
}
# What another engine than that of these tests would have written.
AS_OTHERS_DO: Final = (
    """
    INSERT INTO vector_spaces (tenant_id, user_id, kind, embedding_model, life, dimension)
    VALUES (%s, %s, 'memory', 'm', gen_random_uuid(), 1)
    """,
    """
    INSERT INTO vectors
        (tenant_id, user_id, kind, embedding_model, row_id, group_id, seq, embedding)
    SELECT %s, %s, 'memory', 'm', gen_random_uuid(), gen_random_uuid(), n, '{1}'
    FROM generate_series(1, 200) n
    """,
    # A file that was not read yet.
    """
    INSERT INTO document_files (tenant_id, document_id, user_id, content, names_document)
    SELECT tenant_id, document_id, user_id, 'PDF', false FROM documents
    WHERE tenant_id = %s AND user_id = %s LIMIT 1
    """,
)


@dataclass
class Somebody:
    """A user with a canary in everything he said, and the ids of his rows."""

    tenant: Tenant
    user: User
    canary: str
    ids: list[str] = field(default_factory=list)

    @property
    def needles(self) -> Sequence[str]:
        """What must be nowhere afterwards: his ids, his words, and his words as bytes."""
        return [self.user.user_id, self.canary, self.canary.encode().hex()]


async def move_in(tenant: Tenant, password: str | None = None) -> Somebody:
    """Make a user who has done everything there is to do; messages are to be searched.

    He logs in if he is given a password.
    """
    canary = f"zanary{new_id().replace('-', '')}q"  # its own stem
    client = tenant.client
    user = await tenant.new_user(
        email=f"{canary}@example.org", display_name=canary, password=password, request_id=canary
    )
    user_id = user.user_id
    created = await client.chat.create_session(
        CreateSessionRequest(user_id=user_id, session_title=canary, request_id=canary)
    )
    session_id = created.session.session_id
    for number in range(3):
        await client.chat.append_message(
            AppendMessageRequest(
                session_id=session_id,
                role=Role.ROLE_USER,
                content=f"Tea {canary}",
                request_id=f"{canary} {number}",
            )
        )
    fork = await client.chat.fork_session(
        ForkSessionRequest(session_id=session_id, request_id=f"{canary} fork")
    )
    await client.memory.remember(
        RememberRequest(
            user_id=user_id,
            memory_type=MemoryType.MEMORY_TYPE_FACT,
            memory_content=f"Likes tea {canary}",
        )
    )
    taken = await client.knowledge.ingest_document(
        IngestDocumentRequest(user_id=user_id, title=canary, text=f"Tea is hot {canary}")
    )
    await settled(client, taken.document.document_id)
    await client.knowledge.reembed_space(
        ReembedSpaceRequest(user_id=user_id, embedding_model="wordllama-l2-256")
    )
    await client.chat.reserve_tokens(ReserveTokensRequest(user_id=user_id, tokens=1))
    if password is not None:
        await client.identity.login(LoginRequest(email=user.email, password=password))
    with pytest.raises(errors.LoginFailedError):
        await client.identity.login(LoginRequest(email=user.email, password="guessed"))
    await client.knowledge.reembed_space(
        ReembedSpaceRequest(user_id=user_id, embedding_model="wordllama-l2-256")
    )
    await client.chat.build_context(BuildContextRequest(session_id=session_id, token_budget=100))
    ids = [session_id, fork.session.session_id, taken.document.document_id]
    somebody = Somebody(tenant, user, canary, ids)
    await search(somebody, tenant.hub, session_id)
    return somebody


async def search(one: Somebody, hub: Hub, session_id: str = "") -> list[Any]:
    """Search everything of his by a hub; return what was found."""
    user_id, client = one.user.user_id, hub.client(one.tenant.key)
    recalled = await client.memory.recall(RecallRequest(user_id=user_id, query="tea"))
    found = await client.knowledge.search(
        SearchRequest(user_id=user_id, query="tea", session_id=session_id)
    )
    said = await client.chat.search_messages(SearchMessagesRequest(user_id=user_id, query="tea"))
    return [*recalled.hits, *found.hits, *said.hits]


def multiply(one: Somebody) -> int:
    """Copy his rows until there are 10,000 of them; return how many were added."""
    hub, added = one.tenant.hub, 0
    for table, (apart, number) in _COPIES.items():
        columns = [one.name for one in metadata.tables[table].c if one.computed is None]
        his = "t::text LIKE %s"
        known = [f"%{known}%" for known in (one.user.user_id, one.ids[0], one.ids[2])]
        query = f"""
            INSERT INTO {table} ({", ".join(columns)})
            SELECT {", ".join(f"new.{column}" for column in columns)}
            FROM (SELECT t FROM {table} t WHERE {his} OR {his} OR {his} ORDER BY 1 LIMIT 1) it (one)
            CROSS JOIN generate_series(1, %s) n
            CROSS JOIN LATERAL jsonb_populate_record(one, jsonb_build_object({apart}, '', n)) new
            RETURNING 1
        """  # noqa: S608 - texts of this file
        added += len(hub.sql(query, *known, number))
    own = (one.tenant.tenant_id, one.user.user_id)
    for statement in AS_OTHERS_DO:
        hub.sql(statement, *own)
    return added


def rows_of(ask: Callable[[str], list[tuple[Any, ...]]]) -> dict[str, Counter[str]]:
    """Return all rows of all tables as texts; ``ask`` runs a statement as a superuser.

    When a key was last used is left out: it is noted at any time.
    """
    tables = ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    query = sql.SQL("SELECT (to_jsonb(t) - 'last_used_at')::text FROM {} t")
    return {
        name: Counter(row for (row,) in ask(query.format(sql.Identifier(name)).as_string()))
        for (name,) in tables
    }


def bearing(rows: dict[str, Counter[str]], needles: Sequence[str]) -> dict[str, int]:
    """Return in which tables rows bear one of these, and in how many."""
    found = {
        table: sum(
            count
            for row, count in texts.items()
            if any(needle in row.lower() for needle in needles)
        )
        for table, texts in rows.items()
    }
    return {table: count for table, count in found.items() if count}


def files_bearing(folder: Path, needle: str) -> list[Path]:
    """Return the files that hold these bytes."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if needle.encode() in file.read_bytes().lower()]


def digests(rows: dict[str, Counter[str]], but: Sequence[str]) -> dict[str, str]:
    """Return a checksum by table of all rows that bear none of these."""
    return {
        table: hashlib.sha256(
            "\n".join(
                sorted(row for row in texts.elements() if not any(one in row for one in but))
            ).encode()
        ).hexdigest()
        for table, texts in rows.items()
    }


async def in_thread(work: Any, *arguments: Any) -> Any:
    """Ask Postgres beside the loop on which the hub works."""
    return await asyncio.to_thread(work, *arguments)
