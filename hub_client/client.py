"""``HubClient`` and ``AsyncHubClient``: one channel, four services."""

from types import TracebackType
from typing import Final, Self

import grpc

from hub_client._transport import OPTIONS, AsyncTransport, Transport
from hub_client.v1 import clients

_TIMEOUT: Final = 30.0


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
