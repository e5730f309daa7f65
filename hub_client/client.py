"""``HubClient`` and ``AsyncHubClient``: one channel, four services."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeAlias

import grpc

from hub_client._transport import OPTIONS, AsyncTransport, Transport
from hub_client.errors import OverloadedError, ReaderTooSlowError, UnavailableError
from hub_client.v1 import (
    Document,
    UploadDocumentRequest,
    WatchSessionRequest,
    WatchSessionResponse,
    clients,
)

_TIMEOUT: Final = 30.0
# Between two streams, so that a hub that is away is not asked without pause.
_RESUME_SECONDS: Final = 0.5
_Bytes: TypeAlias = bytes | bytearray | memoryview
_PART: Final = 1 << 18  # bytes of a file in one message
_RESUMABLE: Final = (OverloadedError, ReaderTooSlowError, UnavailableError)


class HubClient:
    """A connection to a hub, for threads. Safe to share among them."""

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        root_certificates: bytes | None = None,
        tls: bool = False,
        timeout: float = _TIMEOUT,
        act_as: str | None = None,
    ) -> None:
        """Prepare a connection; it is made with the first call.

        Args:
            address: host:port of the hub.
            key: a service key or a user token; None for Login without a key.
            root_certificates: PEM of the authorities to trust; implies ``tls``. None = the
                system's.
            tls: whether to encrypt.
            timeout: seconds that a call may take when it names no time limit of its own.
            act_as: the id of the user for whom a service key with scope ACT_AS acts.

        """
        if tls or root_certificates is not None:
            credentials = grpc.ssl_channel_credentials(root_certificates)
            self._channel = grpc.secure_channel(address, credentials, options=OPTIONS)
        else:
            self._channel = grpc.insecure_channel(address, options=OPTIONS)
        transport = Transport(self._channel, key, timeout, act_as)
        self.identity: Final = clients.IdentityClient(transport)
        self.chat: Final = clients.ChatClient(transport)
        self.memory: Final = clients.MemoryClient(transport)
        self.knowledge: Final = clients.KnowledgeClient(transport)

    def follow(
        self, session_id: str, from_seq: int | None = None
    ) -> Iterator[WatchSessionResponse]:
        """Watch a session without end: a stream that is cut off goes on where it stopped.

        Yields what WatchSession sends: each message once, and the session at the beginning of each
        stream. ``from_seq`` None = only messages that are yet to come. Raises the HubError that
        ends it for good: NotFoundError, or CredentialInvalidError when a user token expires.
        """
        place = _Place(session_id, from_seq)
        while True:
            try:
                for event in self.chat.watch_session(place.request()):
                    place.passed(event)
                    yield event
            except _RESUMABLE:
                time.sleep(_RESUME_SECONDS)

    def upload(
        self,
        file: str | Path | _Bytes,
        header: UploadDocumentRequest | None = None,
        *,
        timeout: float | None = None,
    ) -> Document:
        """Upload a file, by its path, or its bytes, as a document.

        ``header`` bears all but the bytes: the user, a title …; the name of the file is added. A
        file is sent as it is when it is read first. Raises HubError, and OSError of the file.
        """
        content = bytes(file) if isinstance(file, _Bytes) else Path(file).read_bytes()
        parts = _parts(file, content, header)
        return self.knowledge.upload_document(parts, timeout=timeout).document

    def close(self) -> None:
        """Close the connection; calls in progress fail."""
        self._channel.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        self.close()


class AsyncHubClient:
    """A connection to a hub, for one event loop."""

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        root_certificates: bytes | None = None,
        tls: bool = False,
        timeout: float = _TIMEOUT,
        act_as: str | None = None,
    ) -> None:
        """Prepare a connection; takes what ``HubClient`` takes."""
        if tls or root_certificates is not None:
            credentials = grpc.ssl_channel_credentials(root_certificates)
            self._channel = grpc.aio.secure_channel(address, credentials, options=OPTIONS)
        else:
            self._channel = grpc.aio.insecure_channel(address, options=OPTIONS)
        transport = AsyncTransport(self._channel, key, timeout, act_as)
        self.identity: Final = clients.AsyncIdentityClient(transport)
        self.chat: Final = clients.AsyncChatClient(transport)
        self.memory: Final = clients.AsyncMemoryClient(transport)
        self.knowledge: Final = clients.AsyncKnowledgeClient(transport)

    async def follow(
        self, session_id: str, from_seq: int | None = None
    ) -> AsyncIterator[WatchSessionResponse]:
        """Watch a session without end: a stream that is cut off goes on where it stopped.

        Takes, yields and raises what ``HubClient.follow`` does.
        """
        place = _Place(session_id, from_seq)
        while True:
            try:
                async for event in self.chat.watch_session(place.request()):
                    place.passed(event)
                    yield event
            except _RESUMABLE:
                await asyncio.sleep(_RESUME_SECONDS)

    async def upload(
        self,
        file: str | Path | _Bytes,
        header: UploadDocumentRequest | None = None,
        *,
        timeout: float | None = None,
    ) -> Document:
        """Upload a file, or its bytes, as a document.

        Takes and raises what ``HubClient.upload`` does.
        """
        if isinstance(file, _Bytes):
            content = bytes(file)
        else:
            content = await asyncio.to_thread(Path(file).read_bytes)
        parts = _parts(file, content, header)
        return (await self.knowledge.upload_document(parts, timeout=timeout)).document

    async def close(self) -> None:
        """Close the connection; calls in progress fail."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the connection."""
        await self.close()


def _parts(
    file: str | Path | _Bytes, content: bytes, header: UploadDocumentRequest | None
) -> Iterator[UploadDocumentRequest]:
    """Yield the messages of an upload: what it is, and then its bytes."""
    first = UploadDocumentRequest()
    first.MergeFrom(header or first)
    if not isinstance(file, _Bytes) and not first.file_name:
        first.file_name = Path(file).name
    yield first
    for start in range(0, len(content), _PART):
        yield UploadDocumentRequest(data=content[start : start + _PART])


class _Place:
    """How far a reader of a session has come."""

    def __init__(self, session_id: str, next_seq: int | None) -> None:
        self._session_id = session_id
        self._next_seq = next_seq

    def request(self) -> WatchSessionRequest:
        """Return what asks for the rest."""
        return WatchSessionRequest(session_id=self._session_id, from_seq=self._next_seq)

    def passed(self, event: WatchSessionResponse) -> None:
        """Go on after this event from now on."""
        if event.HasField("message"):
            self._next_seq = event.message.seq + 1
        elif event.HasField("session") and self._next_seq is None:
            self._next_seq = event.session.last_seq + 1
