"""SQL of uploaded files, which are kept until their text is read. Never commits."""

import datetime as dt
from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.knowledge.models import document_files
from hub_server.rows import Row

_PART: Final = 1 << 20  # bytes in a row


async def purge_files(connection: AsyncConnection, kept: dt.timedelta) -> int:
    """Remove, in all tenants, files uploaded so long ago and not being read; return how many."""
    statement = sa.text("SELECT hub_purge_files(:kept)")
    return int((await connection.execute(statement, {"kept": kept})).scalar_one())


class FileRepository:
    """Files of one tenant."""

    def __init__(self, connection: AsyncConnection, tenant_id: str) -> None:
        """Work within the transaction of ``connection``."""
        self._connection = connection
        self._tenant_id = tenant_id

    async def add(self, document: Row, content: bytes | bytearray, *, names_document: bool) -> None:
        """Keep the file of a new document."""
        for part, start in enumerate(range(0, len(content), _PART)):
            await self._connection.execute(
                sa.insert(document_files).values(
                    tenant_id=self._tenant_id,
                    document_id=document["document_id"],
                    part=part,
                    user_id=document["user_id"],
                    content=content[start : start + _PART],
                    names_document=names_document,
                )
            )

    async def part_of(self, document_id: str, part: int) -> Row | None:
        """Return a part of a document's file, or None when it has so many not, or none is kept."""
        query = sa.select(document_files.c.content, document_files.c.names_document).where(
            *self._is(document_id), document_files.c.part == part
        )
        return (await self._connection.execute(query)).mappings().first()

    async def drop(self, document_id: str) -> None:
        """Let go of a file: its text is read, or another text has taken its place."""
        await self._connection.execute(sa.delete(document_files).where(*self._is(document_id)))

    def _is(self, document_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            document_files.c.tenant_id == self._tenant_id,
            document_files.c.document_id == document_id,
        )
