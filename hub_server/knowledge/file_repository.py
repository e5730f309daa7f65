"""SQL of uploaded files, which are kept until their text is read. Never commits."""

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from hub_server.knowledge.models import document_files
from hub_server.rows import Row


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
        await self._connection.execute(
            sa.insert(document_files).values(
                tenant_id=self._tenant_id,
                document_id=document["document_id"],
                user_id=document["user_id"],
                content=content,
                names_document=names_document,
            )
        )

    async def of(self, document_id: str) -> Row | None:
        """Return the file of a document, or None when none is kept."""
        query = sa.select(document_files.c.content, document_files.c.names_document)
        result = await self._connection.execute(query.where(*self._is(document_id)))
        return result.mappings().first()

    async def drop(self, document_id: str) -> None:
        """Let go of a file: its text is read, or another text has taken its place."""
        await self._connection.execute(sa.delete(document_files).where(*self._is(document_id)))

    def _is(self, document_id: str) -> tuple[sa.ColumnElement[bool], ...]:
        return (
            document_files.c.tenant_id == self._tenant_id,
            document_files.c.document_id == document_id,
        )
