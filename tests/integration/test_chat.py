"""Sessions and messages, through a real channel."""

from hub_client.v1 import AppendMessageRequest, ListMessagesRequest, Role
from tests.support import Tenant


async def test_messages_are_listed_in_the_order_of_their_seq(tenant: Tenant) -> None:
    """What was appended comes back, numbered from 1, in both orders."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    for text in ("one", "two", "three"):
        await tenant.client.chat.append_message(
            AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER, content=text)
        )
    listed = tenant.client.chat.list_messages(
        ListMessagesRequest(session_id=session.session_id, page_size=2)
    )
    assert [(message.seq, message.content) async for message in listed] == [
        (1, "one"),
        (2, "two"),
        (3, "three"),
    ]
