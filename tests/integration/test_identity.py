"""Users, their configurations, logins and pages, through a real channel."""

import asyncio
import datetime as dt
import uuid
from collections.abc import Awaitable
from typing import Any, Final

import bcrypt
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from hub_client import HubError, errors
from hub_client.v1 import (
    CreateUserRequest,
    GetUserConfigRequest,
    GetUserRequest,
    ListDocumentsRequest,
    ListMemoriesRequest,
    ListMessagesRequest,
    ListSessionsRequest,
    ListUsersRequest,
    LoginRequest,
    UpdateUserConfigRequest,
    User,
    UserConfig,
)
from hub_server.identity.secrets import USER_TOKEN
from tests.contract.credentials import issue
from tests.support import Hub, Tenant

_PASSWORD: Final = "a correct horse"


async def _caught(call: Awaitable[Any]) -> HubError:
    with pytest.raises(HubError) as caught:
        await call
    return caught.value


async def _update(tenant: Tenant, user: User, *paths: str, **values: Any) -> UserConfig:
    request = UpdateUserConfigRequest(config=UserConfig(user_id=user.user_id, **values))
    if paths:
        request.update_mask.CopyFrom(FieldMask(paths=paths))
    return (await tenant.client.identity.update_user_config(request)).config


async def _config(tenant: Tenant, user: User) -> UserConfig:
    request = GetUserConfigRequest(user_id=user.user_id)
    return (await tenant.client.identity.get_user_config(request)).config


# --- users ---------------------------------------------------------------------------------------


async def test_a_new_user_is_found_as_it_was_created(tenant: Tenant) -> None:
    """Create and Get answer alike; the id is a UUIDv7, and the times are now."""
    before = dt.datetime.now(dt.UTC)
    user = await tenant.new_user(email="Ada@Example.org", display_name="Ada Lovelace")
    found = await tenant.client.identity.get_user(GetUserRequest(user_id=user.user_id))
    assert found.user == user
    assert (user.email, user.display_name, user.is_active) == (
        "Ada@Example.org",
        "Ada Lovelace",
        True,
    )
    assert uuid.UUID(user.user_id).version == 7
    assert before <= user.created_at.ToDatetime(dt.UTC) <= dt.datetime.now(dt.UTC)
    assert not user.HasField("last_login")


async def test_a_new_user_has_the_default_configuration(tenant: Tenant) -> None:
    """All is allowed, without limit, in English and UTC."""
    config = await _config(tenant, await tenant.new_user())
    assert (config.enable_multichat, config.enable_chat_history) == (True, True)
    assert (config.enable_rag, config.enable_tool) == (True, True)
    assert not config.HasField("max_sessions")
    assert (config.preferred_language, config.timezone) == ("en", "UTC")
    assert config.etag


@pytest.mark.parametrize(
    "again",
    ["ada@example.org", "ADA@EXAMPLE.ORG", "Ada@Example.Org", "\uff41da@example.org"],
    ids=["same", "upper", "mixed", "wide"],
)
async def test_an_email_belongs_to_one_user_whatever_its_case(tenant: Tenant, again: str) -> None:
    """EMAIL_TAKEN within the tenant, and nothing is changed."""
    user = await tenant.new_user(email="ada@example.org")
    error = await _caught(tenant.client.identity.create_user(CreateUserRequest(email=again)))
    assert isinstance(error, errors.EmailTakenError)
    listed = [one async for one in tenant.client.identity.list_users(ListUsersRequest())]
    assert listed == [user]


async def test_two_tenants_may_have_users_of_one_email(
    tenant: Tenant, other_tenant: Tenant
) -> None:
    """An email is unique within its tenant, and tells nobody else that it is used."""
    first = await tenant.new_user(email="ada@example.org")
    second = await other_tenant.new_user(email="ada@example.org")
    assert first.user_id != second.user_id


async def test_of_two_who_take_one_email_at_once_one_wins(tenant: Tenant) -> None:
    """Sixteen concurrent CreateUser with one email make one user; the others are EMAIL_TAKEN."""
    calls = [
        tenant.client.identity.create_user(CreateUserRequest(email=f"{letter}da@example.org"))
        for letter in "aA" * 8
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, BaseException)]
    assert len(refused) == len(outcomes) - 1
    assert all(isinstance(one, errors.EmailTakenError) for one in refused)
    count = "SELECT count(*) FROM users WHERE tenant_id = %s"
    assert tenant.hub.sql(count, tenant.tenant_id) == [(1,)]


async def test_a_retried_create_returns_the_first_user(tenant: Tenant) -> None:
    """One `request_id` is one user; with other content it is refused."""
    request = CreateUserRequest(email="ada@example.org", display_name="Ada", request_id="r")
    create = tenant.client.identity.create_user
    first, again = await asyncio.gather(create(request), create(request))
    assert first == again == await create(request)
    request.display_name = "Eve"
    assert isinstance(await _caught(create(request)), errors.RequestIdReusedError)


async def test_a_retry_may_not_differ_in_its_password(tenant: Tenant) -> None:
    """The password is part of what was asked, though it is kept as a hash only."""
    request = CreateUserRequest(email="a@example.org", password=_PASSWORD, request_id="r")
    first = await tenant.client.identity.create_user(request)
    assert await tenant.client.identity.create_user(request) == first
    request.password = "another password"
    error = await _caught(tenant.client.identity.create_user(request))
    assert isinstance(error, errors.RequestIdReusedError)


async def test_users_are_listed_newest_first(tenant: Tenant, other_tenant: Tenant) -> None:
    """A list holds all users of the tenant, each once, over as many pages as it takes."""
    await other_tenant.new_user()
    made = [(await tenant.new_user()).user_id for _ in range(7)]
    for size in (1, 3, 7, 1000):
        listed = tenant.client.identity.list_users(ListUsersRequest(page_size=size))
        assert [user.user_id async for user in listed] == made[::-1]


# --- configurations ------------------------------------------------------------------------------


async def test_an_update_without_a_mask_changes_what_is_set(tenant: Tenant) -> None:
    """Absent mask = the fields that are set, also those set to false or 0; others stay."""
    user = await tenant.new_user()
    await _update(tenant, user, timezone="Europe/Vienna", enable_tool=False)
    config = await _update(tenant, user, enable_rag=False, max_sessions=0)
    assert (config.enable_rag, config.HasField("max_sessions"), config.max_sessions) == (
        False,
        True,
        0,
    )
    assert (config.enable_tool, config.timezone) == (False, "Europe/Vienna")
    assert config == await _config(tenant, user)


async def test_an_update_with_a_mask_changes_what_is_named(tenant: Tenant) -> None:
    """A field that is set but not named stays as it is."""
    user = await tenant.new_user()
    config = await _update(
        tenant, user, "preferred_language", preferred_language="de-AT", timezone="Europe/Vienna"
    )
    assert (config.preferred_language, config.timezone) == ("de-AT", "UTC")


async def test_a_named_field_that_is_not_set_returns_to_its_default(tenant: Tenant) -> None:
    """So `max_sessions` is cleared: no limit is its default."""
    user = await tenant.new_user()
    await _update(tenant, user, max_sessions=3, enable_rag=False, timezone="Asia/Tokyo")
    config = await _update(tenant, user, "max_sessions", "timezone")
    assert not config.HasField("max_sessions")
    assert (config.timezone, config.enable_rag) == ("UTC", False)


async def test_a_star_names_every_field(tenant: Tenant) -> None:
    """What is set takes its value, all else its default."""
    user = await tenant.new_user()
    await _update(
        tenant,
        user,
        max_sessions=3,
        enable_rag=False,
        enable_multichat=False,
        enable_chat_history=False,
        enable_tool=False,
        preferred_language="fr",
    )
    config = await _update(tenant, user, "*", enable_rag=False, timezone="Asia/Tokyo")
    fresh = await _config(tenant, await tenant.new_user())
    for same in ("user_id", "etag", "created_at", "updated_at"):
        config.ClearField(same)
        fresh.ClearField(same)
    fresh.MergeFrom(UserConfig(enable_rag=False, timezone="Asia/Tokyo"))
    assert config == fresh


@pytest.mark.parametrize(
    "path", ["etag", "user_id", "created_at", "config.timezone", "unheard_of", "", "timezone,*"]
)
async def test_an_unknown_path_is_refused(tenant: Tenant, path: str) -> None:
    """What cannot be updated is told, and nothing is changed."""
    user = await tenant.new_user()
    before = await _config(tenant, user)
    error = await _caught(_update(tenant, user, "timezone", path, timezone="Asia/Tokyo"))
    assert isinstance(error, errors.InvalidFieldError)
    assert [field for field, _ in error.violations] == ["update_mask"]
    assert await _config(tenant, user) == before


async def test_an_update_that_names_nothing_changes_nothing(tenant: Tenant) -> None:
    """Neither mask nor fields: the configuration comes back as it is."""
    user = await tenant.new_user()
    before = await _config(tenant, user)
    assert await _update(tenant, user) == before


async def test_a_stale_etag_is_refused(tenant: Tenant) -> None:
    """ABORTED / ETAG_MISMATCH once another has changed it, and nothing is changed."""
    user = await tenant.new_user()
    first = await _config(tenant, user)
    second = await _update(tenant, user, timezone="Asia/Tokyo", etag=first.etag)
    assert second.etag != first.etag
    error = await _caught(_update(tenant, user, timezone="UTC", etag=first.etag))
    assert isinstance(error, errors.EtagMismatchError)
    assert error.code.name == "ABORTED"
    assert await _config(tenant, user) == second
    third = await _update(tenant, user, timezone="UTC", etag=second.etag)
    assert third.etag not in (first.etag, second.etag)  # also with the old values


async def test_of_two_updates_with_one_etag_one_wins(tenant: Tenant) -> None:
    """Concurrent writers that read one version do not overwrite each other."""
    user = await tenant.new_user()
    etag = (await _config(tenant, user)).etag
    updates = [_update(tenant, user, max_sessions=number, etag=etag) for number in range(8)]
    outcomes = await asyncio.gather(*updates, return_exceptions=True)
    refused = [one for one in outcomes if isinstance(one, BaseException)]
    assert len(refused) == 7
    assert all(isinstance(one, errors.EtagMismatchError) for one in refused)


_NO_TIME_ZONES: Final = (
    *("Mars/Olympus", "europe/vienna", "CEST", "UTC+1", " UTC", "UTC\n", "America", "Europe/"),
    *("posix/UTC", "right/UTC", "../../etc/passwd", "/etc/localtime", ".", "..", "zone.tab"),
    *("tzdata.zi", "Z\u00fcrich"),
)


@pytest.mark.parametrize("timezone", _NO_TIME_ZONES)
async def test_what_is_no_time_zone_is_refused(tenant: Tenant, timezone: str) -> None:
    """IANA names only: no abbreviations, no offsets, and no way to other files."""
    error = await _caught(_update(tenant, await tenant.new_user(), timezone=timezone))
    assert isinstance(error, errors.InvalidFieldError)
    assert [field for field, _ in error.violations] == ["config.timezone"]


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Vienna", "America/Argentina/Buenos_Aires"])
async def test_a_time_zone_is_kept(tenant: Tenant, timezone: str) -> None:
    """IANA names are accepted as they are written."""
    config = await _update(tenant, await tenant.new_user(), timezone=timezone)
    assert config.timezone == timezone


@pytest.mark.parametrize(
    "language",
    ["e1", "en_US", "-en", "en-", "en--US", "e n", "englishmen", "d\u00e9", "en-US-US", "en-a"],
)
async def test_what_is_no_language_tag_is_refused(tenant: Tenant, language: str) -> None:
    """BCP 47: subtags of letters and digits, joined by hyphens."""
    error = await _caught(_update(tenant, await tenant.new_user(), preferred_language=language))
    assert isinstance(error, errors.InvalidFieldError)
    assert [field for field, _ in error.violations] == ["config.preferred_language"]


@pytest.mark.parametrize(
    "language", ["de", "en-GB", "zh-Hant-TW", "sl-rozaj-biske-1994", "x-klingon", "en-u-ca-iso8601"]
)
async def test_a_language_tag_is_kept(tenant: Tenant, language: str) -> None:
    """Tags are accepted as they are written, regions and scripts included."""
    config = await _update(tenant, await tenant.new_user(), preferred_language=language)
    assert config.preferred_language == language


async def test_all_that_is_wrong_with_a_configuration_is_told_at_once(tenant: Tenant) -> None:
    """BadRequest names every bad field, also of those that no declared limit finds."""
    values = {"timezone": "Mars/Olympus", "preferred_language": "en_US"}
    error = await _caught(_update(tenant, await tenant.new_user(), **values))
    assert {field for field, _ in error.violations} == {f"config.{name}" for name in values}


async def test_the_configuration_of_nobody_is_not_found(
    tenant: Tenant, other_tenant: Tenant
) -> None:
    """Another tenant's user and no user answer alike, to reads and to updates."""
    stranger = await other_tenant.new_user()
    told = set()
    for user_id in (stranger.user_id, str(uuid.uuid4())):
        asked = UpdateUserConfigRequest(config=UserConfig(user_id=user_id, enable_rag=False))
        for call in (
            tenant.client.identity.get_user(GetUserRequest(user_id=user_id)),
            tenant.client.identity.get_user_config(GetUserConfigRequest(user_id=user_id)),
            tenant.client.identity.update_user_config(asked),
        ):
            error = await _caught(call)
            assert isinstance(error, errors.NotFoundError)
            told.add((error.message, str(error.metadata)))
    assert len(told) == 1
    assert (await _config(other_tenant, stranger)).enable_rag


# --- logins --------------------------------------------------------------------------------------


async def test_a_login_gives_a_token_that_acts_as_the_user(tenant: Tenant) -> None:
    """In any case of the email; `user_id` may be left out, and may not be another's."""
    user = await tenant.new_user(email="Ada@example.org", password=_PASSWORD)
    other = await tenant.new_user()
    request = LoginRequest(email="aDa@Example.ORG", password=_PASSWORD)
    before = dt.datetime.now(dt.UTC)
    login = await tenant.client.identity.login(request)
    assert login.user.user_id == user.user_id
    assert before <= login.user.last_login.ToDatetime(dt.UTC)
    lives = login.expires_at.ToDatetime(dt.UTC) - before
    assert abs(lives - dt.timedelta(seconds=tenant.hub.settings.token_ttl)).total_seconds() < 60
    client = tenant.hub.client(login.token)
    for asked in (GetUserRequest(), GetUserRequest(user_id=user.user_id)):
        assert (await client.identity.get_user(asked)).user == login.user
    error = await _caught(client.identity.get_user(GetUserRequest(user_id=other.user_id)))
    assert isinstance(error, errors.NotFoundError)


async def test_a_token_is_stored_as_a_hash_only(hub: Hub, tenant: Tenant) -> None:
    """Neither token nor password nor key can be read from the database."""
    await tenant.new_user(email="ada@example.org", password=_PASSWORD)
    request = LoginRequest(email="ada@example.org", password=_PASSWORD)
    token = (await tenant.client.identity.login(request)).token
    for table in ("users", "credentials", "request_ids"):
        rows = hub.sql(f"SELECT t::text FROM {table} t")  # noqa: S608 - from the line above
        text = repr(rows)
        for part in (token[7:23], token[-16:], tenant.key[-16:], _PASSWORD):
            assert part not in text
            assert part.encode().hex() not in text


async def test_a_login_without_a_key_is_one_of_the_default_tenant(hub: Hub, tenant: Tenant) -> None:
    """The key decides in whose tenant the email is looked for; without one it is `default`."""
    default = Tenant("", hub.key, hub, hub.client(hub.key))
    here = await default.new_user(email="both@example.org", password=_PASSWORD)
    there = await tenant.new_user(email="both@example.org", password=f"{_PASSWORD}, too")
    anybody = hub.client().identity
    found = await anybody.login(LoginRequest(email="both@example.org", password=_PASSWORD))
    assert found.user.user_id == here.user_id
    request = LoginRequest(email="both@example.org", password=f"{_PASSWORD}, too")
    assert isinstance(await _caught(anybody.login(request)), errors.LoginFailedError)
    assert (await tenant.client.identity.login(request)).user.user_id == there.user_id


async def test_every_failed_login_is_told_alike_and_costs_one_hash(
    hub: Hub, tenant: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unknown email, wrong password, no password, disabled user: neither words nor time differ."""
    disabled = await tenant.new_user(email="disabled@example.org", password=_PASSWORD)
    await tenant.new_user(email="right@example.org", password=_PASSWORD)
    await tenant.new_user(email="none@example.org")
    hub.sql("UPDATE users SET is_active = false WHERE user_id = %s", disabled.user_id)
    hashes: list[bytes] = []
    checkpw = bcrypt.checkpw

    def counted(password: bytes, hashed: bytes) -> bool:
        hashes.append(hashed[:7])
        return checkpw(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    told = set()
    for email, password in (
        ("unknown@example.org", _PASSWORD),
        ("right@example.org", "a wrong horse"),
        ("none@example.org", _PASSWORD),
        ("disabled@example.org", _PASSWORD),
    ):
        error = await _caught(
            tenant.client.identity.login(LoginRequest(email=email, password=password))
        )
        assert isinstance(error, errors.LoginFailedError)
        told.add((error.code, error.message, str(error.metadata), error.violations))
    assert len(told) == 1
    assert hashes == [b"$2b$12$"] * 4
    right = LoginRequest(email="right@example.org", password=_PASSWORD)
    await tenant.client.identity.login(right)
    assert len(hashes) == 5


async def test_a_disabled_user_is_refused_on_the_next_call(hub: Hub, tenant: Tenant) -> None:
    """His token is invalid, and a service key that acts for him is told USER_DISABLED."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    client = hub.client(await issue(tenant, USER_TOKEN, user))
    await client.identity.get_user(GetUserRequest())
    hub.sql("UPDATE users SET is_active = false WHERE user_id = %s", user.user_id)
    refused = await _caught(client.identity.get_user(GetUserRequest()))
    assert isinstance(refused, errors.CredentialInvalidError)
    by_user = ListSessionsRequest(user_id=user.user_id)
    for listed in (
        tenant.client.chat.list_sessions(by_user),
        tenant.client.chat.list_messages(ListMessagesRequest(session_id=session.session_id)),
        tenant.client.memory.list_memories(ListMemoriesRequest(user_id=user.user_id)),
        tenant.client.knowledge.list_documents(ListDocumentsRequest(user_id=user.user_id)),
    ):
        assert isinstance(await _caught(anext(listed)), errors.UserDisabledError)
    found = await tenant.client.identity.get_user(GetUserRequest(user_id=user.user_id))
    assert not found.user.is_active  # how the tenant learns of it
    hub.sql("UPDATE users SET is_active = true WHERE user_id = %s", user.user_id)
    assert (await client.identity.get_user(GetUserRequest())).user.is_active


async def test_a_token_is_refused_once_it_expired(hub: Hub, tenant: Tenant) -> None:
    """The same token works before its `expires_at` and not after."""
    user = await tenant.new_user()
    client = hub.client(await issue(tenant, USER_TOKEN, user))
    await client.identity.get_user(GetUserRequest())
    hub.sql("UPDATE credentials SET expires_at = now() WHERE user_id = %s", user.user_id)
    error = await _caught(client.identity.get_user(GetUserRequest()))
    assert isinstance(error, errors.CredentialInvalidError)
