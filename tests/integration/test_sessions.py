"""The lifecycle of sessions: renamed, ended and reopened, put away, deleted and back."""

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hub_client import errors
from hub_client.v1 import (
    AppendMessageRequest,
    ArchiveSessionRequest,
    DeleteSessionRequest,
    EndSessionRequest,
    GetMessageRequest,
    GetSessionRequest,
    ListMessagesRequest,
    ListSessionsRequest,
    ReopenSessionRequest,
    Role,
    Session,
    UnarchiveSessionRequest,
    UndeleteSessionRequest,
    UpdateSessionRequest,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from tests.integration.test_database import held, statements, until, waiting_for_locks
from tests.support import Tenant


async def say(tenant: Tenant, session: Session, content: str) -> int:
    """Append a message; return its seq."""
    request = AppendMessageRequest(
        session_id=session.session_id, role=Role.ROLE_USER, content=content
    )
    return (await tenant.client.chat.append_message(request)).message.seq


async def listed(tenant: Tenant, user: User, **filters: Any) -> list[str]:
    """Return the ids of a user's sessions, newest first."""
    request = ListSessionsRequest(user_id=user.user_id, **filters)
    return [one.session_id async for one in tenant.client.chat.list_sessions(request)]


async def allow(tenant: Tenant, user: User, sessions: int) -> None:
    """Set how many sessions of a user may be active."""
    config = UserConfig(user_id=user.user_id, max_sessions=sessions)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))


async def test_a_session_is_changed_only_as_the_mask_says(tenant: Tenant) -> None:
    """An absent mask changes what is not empty, a mask what it names, `*` everything."""
    session = await tenant.new_session(
        await tenant.new_user(), session_title="Tea", model_name="m1", metadata={"a": 1}
    )
    update, about = tenant.client.chat.update_session, session.session_id
    renamed = (await update(UpdateSessionRequest(session_id=about, session_title="Coffee"))).session
    assert (renamed.session_title, renamed.model_name) == ("Coffee", "m1")
    assert renamed.metadata == session.metadata
    mask = FieldMask(paths=["model_name", "metadata"])
    emptied = (await update(UpdateSessionRequest(session_id=about, update_mask=mask))).session
    assert (emptied.session_title, emptied.model_name) == ("Coffee", "")
    assert not emptied.HasField("metadata")
    bare = await update(UpdateSessionRequest(session_id=about, update_mask=FieldMask(paths=["*"])))
    assert bare.session.session_title == ""
    with pytest.raises(errors.InvalidFieldError):
        await update(
            UpdateSessionRequest(session_id=about, update_mask=FieldMask(paths=["is_active"]))
        )


async def test_of_two_updates_with_one_etag_one_wins(tenant: Tenant) -> None:
    """A message makes no new version, a title does; what changes nothing makes none."""
    session = await tenant.new_session(await tenant.new_user(), session_title="Tea")
    await say(tenant, session, "Hello")
    about = session.session_id

    async def rename(title: str) -> str:
        request = UpdateSessionRequest(session_id=about, session_title=title, etag=session.etag)
        try:
            return (await tenant.client.chat.update_session(request)).session.session_title
        except errors.EtagMismatchError:
            return ""

    titles = await asyncio.gather(*(rename(f"Title {number}") for number in range(8)))
    assert sum(bool(title) for title in titles) == 1
    now = (await tenant.client.chat.get_session(GetSessionRequest(session_id=about))).session
    assert now.session_title in titles
    same = UpdateSessionRequest(session_id=about, session_title=now.session_title)
    assert (await tenant.client.chat.update_session(same)).session == now
    with pytest.raises(errors.EtagMismatchError):
        await tenant.client.chat.delete_session(
            DeleteSessionRequest(session_id=about, etag=session.etag)
        )


async def test_an_ended_session_is_reopened_and_goes_on(tenant: Tenant) -> None:
    """With the next seq; to end or reopen it twice changes nothing."""
    session = await tenant.new_session(await tenant.new_user())
    assert await say(tenant, session, "one") == 1
    end = EndSessionRequest(session_id=session.session_id)
    reopen = ReopenSessionRequest(session_id=session.session_id)
    ended = (await tenant.client.chat.end_session(end)).session
    assert (await tenant.client.chat.end_session(end)).session == ended
    with pytest.raises(errors.SessionEndedError):
        await say(tenant, session, "too late")
    reopened = (await tenant.client.chat.reopen_session(reopen)).session
    assert (reopened.is_active, reopened.HasField("ended_at")) == (True, False)
    assert (await tenant.client.chat.reopen_session(reopen)).session == reopened
    assert await say(tenant, session, "two") == 2


async def test_no_way_back_exceeds_the_session_limit(tenant: Tenant) -> None:
    """Of 16 that are reopened or undeleted at once, as many succeed as may be active."""
    user = await tenant.new_user()
    ended, deleted = [[await tenant.new_session(user) for _ in range(8)] for _ in range(2)]
    for session in ended:
        await tenant.client.chat.end_session(EndSessionRequest(session_id=session.session_id))
    for session in deleted:
        request = DeleteSessionRequest(session_id=session.session_id)
        await tenant.client.chat.delete_session(request)
    await allow(tenant, user, 5)
    ways = [
        *(
            tenant.client.chat.reopen_session(ReopenSessionRequest(session_id=one.session_id))
            for one in ended
        ),
        *(
            tenant.client.chat.undelete_session(UndeleteSessionRequest(session_id=one.session_id))
            for one in deleted
        ),
    ]
    lock = "SELECT 1 FROM user_configs WHERE user_id = %s FOR UPDATE"
    with held(tenant.hub, lock, user.user_id):
        tasks = [asyncio.ensure_future(way) for way in ways]
        # As many as the hub has connections stand there at once.
        await until(lambda: waiting_for_locks(tenant.hub) == tenant.hub.settings.pool_size)
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    refused = [one for one in answers if isinstance(one, errors.SessionLimitError)]
    assert len(refused) == 11
    assert len(await listed(tenant, user, is_active=True)) == 5


async def test_a_deleted_session_is_as_if_it_were_not_and_comes_back(tenant: Tenant) -> None:
    """Every call answers NOT_FOUND, lists leave it out; back, it has all it had."""
    user = await tenant.new_user()
    session = await tenant.new_session(user, session_title="Tea")
    await say(tenant, session, "Hello")
    about, chat = session.session_id, tenant.client.chat
    gone = (await chat.delete_session(DeleteSessionRequest(session_id=about))).session
    assert gone.HasField("deleted_at")
    for call in (
        chat.get_session(GetSessionRequest(session_id=about)),
        chat.update_session(UpdateSessionRequest(session_id=about, session_title="x")),
        chat.end_session(EndSessionRequest(session_id=about)),
        chat.reopen_session(ReopenSessionRequest(session_id=about)),
        chat.archive_session(ArchiveSessionRequest(session_id=about)),
        chat.delete_session(DeleteSessionRequest(session_id=about)),
        chat.get_message(GetMessageRequest(session_id=about, seq=1)),
    ):
        with pytest.raises(errors.NotFoundError):
            await call
    with pytest.raises(errors.NotFoundError):
        await say(tenant, session, "too late")
    assert await listed(tenant, user) == []
    assert await listed(tenant, user, show_deleted=True) == [about]
    undelete = UndeleteSessionRequest(session_id=about)
    back = (await chat.undelete_session(undelete)).session
    assert (await chat.undelete_session(undelete)).session == back
    assert (back.session_title, back.last_seq, back.HasField("deleted_at")) == ("Tea", 1, False)
    assert await say(tenant, session, "again") == 2


async def test_sessions_are_listed_by_state_and_model(tenant: Tenant) -> None:
    """Filters add up; an archived session is still active."""
    user = await tenant.new_user()
    one, two, three = [
        await tenant.new_session(user, model_name=model) for model in ("m1", "m2", "m1")
    ]
    chat = tenant.client.chat
    await chat.end_session(EndSessionRequest(session_id=one.session_id))
    archive = ArchiveSessionRequest(session_id=three.session_id)
    archived = (await chat.archive_session(archive)).session
    assert (archived.is_archived, archived.is_active) == (True, True)
    assert await say(tenant, three, "Hello") == 1
    ids = [three.session_id, two.session_id, one.session_id]
    assert await listed(tenant, user) == ids
    assert await listed(tenant, user, is_active=True) == ids[:2]
    assert await listed(tenant, user, is_active=False) == ids[2:]
    assert await listed(tenant, user, is_archived=True) == ids[:1]
    assert await listed(tenant, user, is_archived=False) == ids[1:]
    assert await listed(tenant, user, model_name="m1") == [ids[0], ids[2]]
    assert await listed(tenant, user, model_name="m1", is_active=True, page_size=1) == ids[:1]
    unarchive = UnarchiveSessionRequest(session_id=three.session_id)
    assert not (await chat.unarchive_session(unarchive)).session.is_archived


async def test_a_message_is_got_by_its_seq(tenant: Tenant) -> None:
    """With one statement, as it is listed; one that does not exist is not found."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    for text in ("one", "two", "three"):
        await say(tenant, session, text)
    get = GetMessageRequest(session_id=session.session_id, seq=2)
    await tenant.client.chat.get_message(get)
    with statements() as seen:
        message = (await tenant.client.chat.get_message(get)).message
    assert len(seen) == 1
    listing = ListMessagesRequest(session_id=session.session_id)
    assert message == [one async for one in tenant.client.chat.list_messages(listing)][1]
    for seq in (4, 2**62):
        with pytest.raises(errors.NotFoundError) as caught:
            await tenant.client.chat.get_message(
                GetMessageRequest(session_id=session.session_id, seq=seq)
            )
        assert caught.value.metadata["resource"] == "message"
    config = UserConfig(user_id=user.user_id, enable_chat_history=False)
    await tenant.client.identity.update_user_config(UpdateUserConfigRequest(config=config))
    with pytest.raises(errors.FeatureDisabledError):
        await tenant.client.chat.get_message(get)
