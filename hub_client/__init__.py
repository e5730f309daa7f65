"""The Python client of Cortex Hub.

    from hub_client import HubClient
    from hub_client.v1 import AppendMessageRequest, Role

    with HubClient("127.0.0.1:50051", key) as hub:
        request = AppendMessageRequest(session_id=..., role=Role.ROLE_USER, content="Hi")
        print(hub.chat.append_message(request).message.seq)

``HubClient`` and ``AsyncHubClient`` have the four services as attributes. Calls take and return the
messages of the contract (``hub_client.v1``); lists are iterators; failures are subclasses of
``HubError``, one for each reason of the contract.
"""

from hub_client.client import AsyncHubClient, HubClient
from hub_client.errors import HubError

__all__ = ["AsyncHubClient", "HubClient", "HubError"]
