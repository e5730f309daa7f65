"""The lifecycle of users, through a real channel."""

import asyncio

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hub_client.errors import (
    CredentialInvalidError,
    EmailTakenError,
    EtagMismatchError,
    InvalidFieldError,
    NotFoundError,
    UserDisabledError,
)
from hub_client.v1 import (
    ActivateUserRequest,
    AppendMessageRequest,
    CreateUserRequest,
    DeactivateUserRequest,
    DeleteUserRequest,
    GetSessionRequest,
    GetUserRequest,
    Level,
    ListSessionsRequest,
    ListUsersRequest,
    LoginRequest,
    Role,
    UndeleteUserRequest,
    UpdateUserRequest,
    User,
    WhoAmIRequest,
)
from tests.support import Tenant

PASSWORD = "a long enough password"


async def test_a_user_is_changed_only_as_the_mask_says(tenant: Tenant) -> None:
    """An absent mask changes what is not empty, a mask what it names, and nothing else."""
    user = await tenant.new_user(display_name="Ann")
    update = tenant.client.identity.update_user
    renamed = await update(UpdateUserRequest(user=User(user_id=user.user_id, display_name="B")))
    assert (renamed.user.display_name, renamed.user.email) == ("B", user.email)
    emptied = await update(
        UpdateUserRequest(
            user=User(user_id=user.user_id, email="x@example.org"),
            update_mask=FieldMask(paths=["display_name"]),
        )
    )
    assert (emptied.user.display_name, emptied.user.email) == ("", user.email)
    with pytest.raises(InvalidFieldError) as refused:
        await update(
            UpdateUserRequest(
                user=User(user_id=user.user_id), update_mask=FieldMask(paths=["is_active"])
            )
        )
    assert refused.value.violations[0][0] == "update_mask"


async def test_of_two_updates_with_one_etag_one_wins(tenant: Tenant) -> None:
    """Concurrent updates that read the same version do not overwrite one another."""
    user = await tenant.new_user()

    async def rename(name: str) -> str:
        changed = User(user_id=user.user_id, display_name=name, etag=user.etag)
        try:
            await tenant.client.identity.update_user(UpdateUserRequest(user=changed))
        except EtagMismatchError:
            return ""
        return name

    names = await asyncio.gather(*(rename(f"name {number}") for number in range(8)))
    won = [name for name in names if name]
    current = await tenant.client.identity.get_user(GetUserRequest(user_id=user.user_id))
    assert won == [current.user.display_name]


async def test_a_taken_email_is_refused_in_any_spelling(tenant: Tenant) -> None:
    """Case, width of letters, and the IDNA form of the domain do not make another email."""
    await tenant.new_user(email="ann@bücher.example")
    other = await tenant.new_user()
    for spelling in ("ANN@BÜCHER.example", "\uff41\uff4e\uff4e@xn--bcher-kva.example"):
        with pytest.raises(EmailTakenError):
            await tenant.client.identity.create_user(CreateUserRequest(email=spelling))
        with pytest.raises(EmailTakenError):
            await tenant.client.identity.update_user(
                UpdateUserRequest(user=User(user_id=other.user_id, email=spelling))
            )


async def test_a_disabled_user_is_refused_on_the_next_call(tenant: Tenant) -> None:
    """Deactivating acts at once on the user's token and on keys that act for him, until undone."""
    user = await tenant.new_user(email="dis@example.org", password=PASSWORD)
    session = await tenant.new_session(user)
    login = LoginRequest(email="dis@example.org", password=PASSWORD)
    token = (await tenant.client.identity.login(login)).token
    own = tenant.hub.client(token)
    await own.chat.get_session(GetSessionRequest(session_id=session.session_id))

    await tenant.client.identity.deactivate_user(DeactivateUserRequest(user_id=user.user_id))
    with pytest.raises(CredentialInvalidError):
        await own.chat.get_session(GetSessionRequest(session_id=session.session_id))
    with pytest.raises(UserDisabledError):
        await tenant.client.chat.append_message(
            AppendMessageRequest(session_id=session.session_id, role=Role.ROLE_USER)
        )

    await tenant.client.identity.activate_user(ActivateUserRequest(user_id=user.user_id))
    await own.chat.get_session(GetSessionRequest(session_id=session.session_id))


async def test_a_deleted_user_comes_back_whole(tenant: Tenant) -> None:
    """A deleted user's ids are not found and lists hide him; undeleting restores all of it."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    identity = tenant.client.identity
    with pytest.raises(EtagMismatchError):
        await identity.delete_user(DeleteUserRequest(user_id=user.user_id, etag="other"))
    await identity.delete_user(DeleteUserRequest(user_id=user.user_id, etag=user.etag))
    for call in (
        identity.get_user(GetUserRequest(user_id=user.user_id)),
        identity.delete_user(DeleteUserRequest(user_id=user.user_id)),
        identity.deactivate_user(DeactivateUserRequest(user_id=user.user_id)),
        tenant.client.chat.get_session(GetSessionRequest(session_id=session.session_id)),
    ):
        with pytest.raises(NotFoundError):
            await call
    assert [one async for one in identity.list_users(ListUsersRequest())] == []
    shown = [one async for one in identity.list_users(ListUsersRequest(show_deleted=True))]
    assert [one.user_id for one in shown] == [user.user_id]
    assert shown[0].HasField("deleted_at")

    await identity.undelete_user(UndeleteUserRequest(user_id=user.user_id))
    sessions = tenant.client.chat.list_sessions(ListSessionsRequest(user_id=user.user_id))
    assert [one.session_id async for one in sessions] == [session.session_id]


async def test_users_are_filtered_by_state_and_beginning_of_email(tenant: Tenant) -> None:
    """Filters of ListUsers hold over pages, in any case, and take `%` and `_` as they stand."""
    emails = ["Ab1@example.org", "ab2@example.org", "a_3@example.org", "b4@example.org"]
    users = {email: await tenant.new_user(email=email) for email in emails}
    await tenant.client.identity.deactivate_user(
        DeactivateUserRequest(user_id=users["ab2@example.org"].user_id)
    )

    async def listed(**filters: object) -> list[str]:
        request = ListUsersRequest(page_size=1, **filters)  # type: ignore[arg-type]
        return sorted([user.email async for user in tenant.client.identity.list_users(request)])

    assert await listed(email_prefix="AB") == ["Ab1@example.org", "ab2@example.org"]
    assert await listed(email_prefix="a_") == ["a_3@example.org"]
    assert await listed(email_prefix="%") == []
    assert await listed(is_active=False) == ["ab2@example.org"]
    assert await listed(is_active=True, email_prefix="ab") == ["Ab1@example.org"]


async def test_who_am_i_tells_key_and_user_apart(tenant: Tenant) -> None:
    """A service key has no user; a user token has the user it was issued to."""
    user = await tenant.new_user(email="who@example.org", password=PASSWORD)
    by_key = await tenant.client.identity.who_am_i(WhoAmIRequest())
    assert (by_key.tenant_id, by_key.HasField("user")) == (tenant.tenant_id, False)
    login = LoginRequest(email="who@example.org", password=PASSWORD)
    token = (await tenant.client.identity.login(login)).token
    by_token = await tenant.hub.client(token).identity.who_am_i(WhoAmIRequest())
    assert (by_token.user.user_id, by_token.level) == (user.user_id, Level.LEVEL_USER)


async def test_an_update_that_changes_nothing_is_none(tenant: Tenant) -> None:
    """The same email again makes no new version, and no event."""
    user = await tenant.new_user()
    request = UpdateUserRequest(user=User(user_id=user.user_id, email=user.email))
    assert (await tenant.client.identity.update_user(request)).user == user
    noted = "SELECT count(*) FROM audit_events WHERE tenant_id = %s"
    assert tenant.hub.sql(noted, tenant.tenant_id) == [(1,)]


async def test_an_international_email_is_found_and_is_one(tenant: Tenant) -> None:
    """By its beginning and its whole domain; a dot at the end makes it no other."""
    user = await tenant.new_user(email="anna@m\u00fcnchen.example")
    for prefix in ("anna", "anna@", "Anna@M\u00dcNCHEN.example", "anna@xn--"):
        request = ListUsersRequest(email_prefix=prefix)
        found = [one.user_id async for one in tenant.client.identity.list_users(request)]
        assert found == [user.user_id], prefix
    with pytest.raises(EmailTakenError):
        await tenant.new_user(email="anna@xn--mnchen-3ya.example.")
