"""Erasure: nothing is left of who is erased, and nothing of others is touched."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

import hub_server.server
from hub_client import AsyncHubClient, errors
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateTenantRequest,
    CreateUserRequest,
    EraseTenantRequest,
    EraseUserRequest,
    Erasure,
    ErasureState,
    GetErasureRequest,
    GetSessionRequest,
    GetTenantErasureRequest,
    GetTenantRequest,
    GetUserRequest,
    IngestDocumentRequest,
    ListAuditEventsRequest,
    ListTenantsRequest,
    ListUsersRequest,
    LoginRequest,
    MemoryType,
    MessageSearch,
    RememberRequest,
    ReserveTokensRequest,
    Role,
    TenantSettings,
    UndeleteUserRequest,
    UpdateTenantSettingsRequest,
    WatchSessionRequest,
    WhoAmIRequest,
)
from hub_server import passwords
from hub_server.database import identifier, metadata
from hub_server.erasure import plan
from hub_server.identity.models import users
from hub_server.ids import new_id
from hub_server.jobs import forgetting
from hub_server.retrieval.views import Space, Views
from tests.contract.credentials import operator_of
from tests.erasing import (
    PASSWORD,
    Somebody,
    bearing,
    digests,
    files_bearing,
    in_thread,
    move_in,
    multiply,
    rows_of,
    search,
)
from tests.integration.test_database import own_hub, token_of, until
from tests.support import Hub, Tenant, running_hub

_RUNNING, _FINISHED = ErasureState.ERASURE_STATE_RUNNING, ErasureState.ERASURE_STATE_FINISHED


@pytest.fixture
async def operator(hub: Hub) -> AsyncHubClient:
    """A client with an operator's key."""
    return hub.client(await asyncio.to_thread(operator_of, hub))


async def erase(tenant: Tenant, user_id: str) -> Erasure:
    """Erase a user to the end."""
    request = EraseUserRequest(user_id=user_id)
    erasure = (await tenant.client.identity.erase_user(request)).erasure
    assert erasure.state == _FINISHED
    return erasure


async def searching(hub: Hub) -> Tenant:
    """Return a new tenant whose messages are searched."""
    tenant = await hub.new_tenant()
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    await tenant.client.identity.update_tenant_settings(
        UpdateTenantSettingsRequest(tenant_settings=settings)
    )
    return tenant


# --- somebody with 10,000 rows --------------------------------------------------------------------


@dataclass
class Erased:
    """What was before somebody was erased, and what came of it."""

    hubs: Sequence[Hub]
    views: Sequence[Views]
    one: Somebody
    others: Sequence[Somebody]
    token: str
    before: dict[str, Any]
    after: dict[str, Any]
    erasure: Erasure


@pytest.fixture(scope="module")
async def erased(
    postgres_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Erased]:
    """Somebody with 10,000 rows, erased; a neighbour and a foreigner have done the same as he.

    Two hubs with folders of their own have searched all he had; both have views of it in memory
    and in files.
    """
    name, folder = f"hub_test_{uuid.uuid4().hex}", tmp_path_factory.mktemp("erased")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    url = sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    views: list[Views] = []

    def noted(*arguments: Any, **values: Any) -> Views:
        views.append(Views(*arguments, **values))
        return views[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_server.server, "Views", noted)
        patch.setattr(passwords, "ROUNDS", 4)
        async with (
            own_hub(url, folder / "one") as first,
            running_hub(url, _made(folder / "two")) as second,
        ):
            tenant, other = await searching(first), await searching(first)
            people = [await move_in(whose, PASSWORD) for whose in (tenant, tenant, other)]
            for one in people:
                assert await search(one, second)
            for held in views:
                for space, entry in list(held._entries.items()):
                    await held._save(space, entry)
            yield await _erased((first, second), views, people)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


async def _erased(
    hubs: Sequence[Hub], views: Sequence[Views], people: Sequence[Somebody]
) -> Erased:
    one, *others = people
    token = await token_of(one.tenant, one.user.user_id)
    assert await in_thread(multiply, one) >= 10_000
    before = await in_thread(rows_of, hubs[0].sql)
    for hub, held in zip(hubs, views, strict=True):
        assert files_bearing(hub.settings.data_dir / "views", one.canary)
        assert (one.tenant.tenant_id, one.user.user_id) in await held.owners()
    erasure = await erase(one.tenant, one.user.user_id)
    after = await in_thread(rows_of, hubs[0].sql)
    return Erased(hubs, views, one, others, token, before, after, erasure)


def test_no_table_bears_anything_of_who_is_erased(erased: Erased) -> None:
    """Neither his id nor a word of his, in any column of any table, as text or as bytes."""
    found = bearing(erased.before, erased.one.needles)
    assert sum(found.values()) > 10_000
    tables = {part.table.name for part in plan.of_user()} | {"audit_events"}
    # The throttle knows an email by an HMAC.
    assert tables - found.keys() <= {"login_throttles"}
    assert bearing(erased.after, [*erased.one.needles, *erased.one.ids]) == {}


async def test_no_view_or_file_bears_anything_of_who_is_erased(erased: Erased) -> None:
    """In the hub that erased him at once; in another as soon as it is told."""
    own = (erased.one.tenant.tenant_id, erased.one.user.user_id)
    for hub, views in zip(erased.hubs, erased.views, strict=True):
        folder = hub.settings.data_dir
        await until(lambda: not files_bearing(folder, erased.one.canary))  # noqa: B023 - now
        assert own not in await views.owners()
        for other in erased.others:
            assert (other.tenant.tenant_id, other.user.user_id) in await views.owners()
            assert files_bearing(folder, other.canary)
    assert {one.kind for one in erased.erasure.erased_views if one.views} == {
        "knowledge",
        "memory",
        "messages",
    }


def test_rows_of_others_are_untouched(erased: Erased) -> None:
    """Table by table the same bytes, but for the receipt and the events that bear its id."""
    his = [*erased.one.needles, *erased.one.ids]
    accounts = set(erased.before["login_throttles"]) - set(erased.after["login_throttles"])
    assert len(accounts) == 1
    before = digests(erased.before, [*his, *accounts])
    after = digests(erased.after, [erased.erasure.erasure_id])
    assert before == after
    assert bearing(erased.after, [erased.erasure.erasure_id]).keys() == {
        "erasures",
        "audit_events",
    }


async def test_answers_after_an_erasure_are_those_of_somebody_who_never_was(
    erased: Erased,
) -> None:
    """By his id, his session's, his token, his email; in lists and in the log there is nothing."""
    one, client = erased.one, erased.one.tenant.client
    unknown: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.identity.get_user(GetUserRequest(user_id=one.user.user_id)),
        lambda: client.identity.undelete_user(UndeleteUserRequest(user_id=one.user.user_id)),
        lambda: client.chat.get_session(GetSessionRequest(session_id=one.ids[0])),
        lambda: search(one, erased.hubs[0]),
        lambda: search(one, erased.hubs[1]),
    ]
    for call in unknown:
        with pytest.raises(errors.NotFoundError):
            await call()
    with pytest.raises(errors.CredentialInvalidError):
        await erased.hubs[1].client(erased.token).identity.who_am_i(WhoAmIRequest())
    with pytest.raises(errors.LoginFailedError):
        await client.identity.login(LoginRequest(email=one.user.email, password=PASSWORD))
    listing = client.identity.list_users(ListUsersRequest(show_deleted=True))
    assert [user.user_id async for user in listing] == [erased.others[0].user.user_id]
    events = [
        event
        async for event in client.identity.list_audit_events(
            ListAuditEventsRequest(target_id=erased.erasure.erasure_id)
        )
    ]
    assert {"user_created", "authn_login_success", "user_erased"} <= {
        event.event_type for event in events
    }


async def test_the_receipt_tells_what_was_removed(erased: Erased) -> None:
    """As many rows of each table as there were, and a look that found nothing; again and again."""
    counted = {one.table: one.rows for one in erased.erasure.erased_rows}
    assert counted.keys() == {part.table.name for part in plan.of_user()} | {"audit_events"}
    fewer = {
        table: rows.total() - erased.after[table].total()
        for table, rows in erased.before.items()
        if table not in ("audit_events", "erasures")
    }
    assert {table: rows for table, rows in fewer.items() if rows} == {
        table: rows for table, rows in counted.items() if rows and table != "audit_events"
    }
    assert counted["audit_events"] > 600
    probe = erased.erasure.probe
    assert probe.lookups == len(plan.of_user()) + 1
    assert (probe.rows, probe.users_with_views) == (0, 0)
    assert erased.erasure.created_at.ToDatetime() < erased.erasure.finished_at.ToDatetime()
    client, user_id = erased.one.tenant.client, erased.one.user.user_id
    assert await erase(erased.one.tenant, user_id) == erased.erasure
    got = await client.identity.get_erasure(GetErasureRequest(user_id=user_id))
    assert got.erasure == erased.erasure


# --- what is on the list --------------------------------------------------------------------------


def test_every_table_with_rows_of_users_is_on_the_list(hub: Hub) -> None:
    """By the catalog of Postgres: each with a column for users, or that refers to one such.

    The log and the receipts are treated on their own. Whoever adds a table and sees this fail
    imports its model where the server does, or lets its rows refer to users by a foreign key.
    """
    listed = {part.table.name for part in plan.of_user()} | {"audit_events", "erasures"}
    columns = "SELECT DISTINCT attrelid::regclass::text FROM pg_attribute JOIN pg_class c"
    his = hub.sql(
        f"{columns} ON c.oid = attrelid WHERE attname LIKE '%%user_id' AND c.relkind IN ('r', 'p')"
        " AND relnamespace = 'public'::regnamespace"
    )
    keys = hub.sql(
        "SELECT conrelid::regclass::text, confrelid::regclass::text FROM pg_constraint"
        " WHERE contype = 'f'"
    )
    theirs = {table for (table,) in his} | {"users"}
    for _ in keys:
        theirs |= {table for table, other in keys if other in theirs}
    assert theirs <= listed
    tenants = {table for (table,) in hub.sql("SELECT relname FROM pg_class WHERE relrowsecurity")}
    assert tenants == {part.table.name for part in plan.of_tenant()} | {"audit_events", "erasures"}


def test_a_table_that_is_added_is_on_the_list_by_itself() -> None:
    """However far it hangs on users, or if it only names them; and before what it refers to."""
    tables = sa.MetaData()

    def table(name: str, *items: Any) -> sa.Table:
        return sa.Table(name, tables, identifier("tenant_id", primary_key=True), *items)

    def key(of: sa.Table, near: str, far: str) -> sa.ForeignKeyConstraint:
        return sa.ForeignKeyConstraint(["tenant_id", near], [of.c.tenant_id, of.c[far]])

    own = [identifier("id", primary_key=True), identifier("user_id", nullable=False)]
    notes = table("notes", *own, key(users, "user_id", "user_id"))
    lines = table("lines", identifier("note_id", nullable=False), key(notes, "note_id", "id"))
    table("words", identifier("line_of", nullable=False), key(lines, "line_of", "note_id"))
    table("named", identifier("user_id"))
    table("of_nobody", identifier("shelf_id"))
    listed = [part.table.name for part in plan.of_user(tables)]
    assert sorted(listed) == ["lines", "named", "notes", "users", "words"]
    assert listed.index("words") < listed.index("lines") < listed.index("notes")
    assert listed[-1] == "users"


# --- what comes between ---------------------------------------------------------------------------


async def test_who_began_before_is_waited_for_and_leaves_nothing(tenant: Tenant) -> None:
    """A write that was under way is removed, too; meanwhile the user is not there any more."""
    user, hub, client = await tenant.new_user(), tenant.hub, tenant.client
    request = GetErasureRequest(user_id=user.user_id)
    with psycopg.connect(hub.owner_url) as connection:
        await in_thread(
            connection.execute,
            "INSERT INTO request_ids (tenant_id, user_id, request_id, fingerprint, answer)"
            " VALUES (%s, %s, 'late', '', 'late')",
            [tenant.tenant_id, user.user_id],
        )
        erasing = asyncio.create_task(erase(tenant, user.user_id))
        query = "SELECT count(*) FROM user_usage WHERE user_id = %s"
        await _until_gone(client, user.user_id)
        assert (await client.identity.get_erasure(request)).erasure.state == _RUNNING
        with pytest.raises(errors.NotFoundError):
            await client.identity.undelete_user(UndeleteUserRequest(user_id=user.user_id))
        listing = client.identity.list_users(ListUsersRequest(show_deleted=True))
        assert [one async for one in listing] == []
        with pytest.raises(errors.EmailTakenError):
            await client.identity.create_user(CreateUserRequest(email=user.email))
        short = EraseUserRequest(user_id=user.user_id)
        answer = await client.identity.erase_user(short, timeout=1.0)
        assert answer.erasure.state == _RUNNING
        assert await in_thread(hub.sql, query, user.user_id) == [(1,)]
        await in_thread(connection.commit)
    await erasing
    assert bearing(await in_thread(rows_of, hub.sql), [user.user_id]) == {}
    again = await client.identity.create_user(CreateUserRequest(email=user.email))
    assert again.user.user_id != user.user_id


async def _until_gone(client: AsyncHubClient, user_id: str) -> None:
    with suppress(errors.NotFoundError):
        while True:
            await client.identity.get_user(GetUserRequest(user_id=user_id))


async def test_who_writes_meanwhile_leaves_nothing(hub: Hub) -> None:
    """Writers of all kinds go on until they are told that there is no such user."""
    tenant = await searching(hub)
    one = await move_in(tenant)
    client, user_id, session = tenant.client, one.user.user_id, one.ids[0]
    numbers = count()

    def text() -> str:
        return f"{one.canary} {next(numbers)}"

    writes: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.chat.append_message(
            AppendMessageRequest(session_id=session, role=Role.ROLE_USER, content=text())
        ),
        lambda: client.chat.create_session(
            CreateSessionRequest(user_id=user_id, session_title=text())
        ),
        lambda: client.chat.reserve_tokens(ReserveTokensRequest(user_id=user_id, tokens=1)),
        lambda: client.memory.remember(
            RememberRequest(
                user_id=user_id, memory_type=MemoryType.MEMORY_TYPE_FACT, memory_content=text()
            )
        ),
        lambda: client.knowledge.ingest_document(
            IngestDocumentRequest(user_id=user_id, title=text(), text=f"{text()} " * 200)
        ),
        lambda: search(one, hub, session),
    ]
    done = [0] * len(writes)

    async def write(place: int) -> None:
        with suppress(errors.NotFoundError):
            while True:
                await writes[place]()
                done[place] += 1

    async with asyncio.TaskGroup() as group:
        for place in range(len(writes)):
            group.create_task(write(place))
        await until(lambda: min(done) >= 2)
        group.create_task(erase(tenant, user_id))
    assert bearing(await in_thread(rows_of, hub.sql), [*one.needles, *one.ids]) == {}


async def test_who_watches_is_told_that_there_is_nothing(tenant: Tenant) -> None:
    """A stream over a session ends long before its next heartbeat."""
    user = await tenant.new_user()
    session = await tenant.new_session(user)
    events = tenant.client.chat.watch_session(WatchSessionRequest(session_id=session.session_id))
    await anext(events)
    async with asyncio.timeout(10):
        await erase(tenant, user.user_id)
        with pytest.raises(errors.NotFoundError):
            await anext(events)


async def test_a_process_that_was_not_told_drops_views_all_the_same(
    hub: Hub, tenant: Tenant, tmp_path: Path
) -> None:
    """It looks by itself: views of users who are gone go, those of others stay."""
    user = await tenant.new_user()
    views = Views(1 << 20, 1 << 20, tmp_path / "views")
    spaces = [
        Space(tenant.tenant_id, user_id, "memory", "m") for user_id in (user.user_id, new_id())
    ]

    async def pull(_: int) -> Sequence[Any]:
        return []

    search_of = partial(
        views.search, dimension=2, language="en", last_seq=0, pull=pull, query_text="tea"
    )
    for space in spaces:
        await search_of(space, query_vector=None, limit=1)
    assert await forgetting.sweep(hub.database, views) == 1
    assert await views.owners() == {(tenant.tenant_id, user.user_id)}
    await erase(tenant, user.user_id)
    assert await forgetting.sweep(hub.database, views) == 1
    assert await views.owners() == set()
    await views.close()


# --- tenants --------------------------------------------------------------------------------------


async def test_nothing_is_left_of_a_tenant(
    hub: Hub, other_tenant: Tenant, operator: AsyncHubClient
) -> None:
    """Users, keys, settings and log go, another tenant's rows stay; its name is free again."""
    name = new_id()
    made = await operator.identity.create_tenant(CreateTenantRequest(name=name, request_id=name))
    tenant_id = made.tenant.tenant_id
    tenant = Tenant(tenant_id, made.secret, hub, hub.client(made.secret))
    settings = TenantSettings(message_search=MessageSearch.MESSAGE_SEARCH_WORDS)
    await tenant.client.identity.update_tenant_settings(
        UpdateTenantSettingsRequest(tenant_settings=settings)
    )
    people = [await move_in(tenant) for _ in range(2)]
    await erase(tenant, people[1].user.user_id)
    await other_tenant.new_session(await other_tenant.new_user())
    before = await in_thread(rows_of, hub.sql)
    request = EraseTenantRequest(tenant_id=tenant_id)
    erasure = (await operator.identity.erase_tenant(request)).erasure
    assert erasure.state == _FINISHED
    after = await in_thread(rows_of, hub.sql)
    left = bearing(after, [tenant_id, name, *people[0].needles, *people[1].needles])
    assert left == {"erasures": 1}
    assert {one.table for one in erasure.erased_rows if one.rows} >= {
        "users",
        "tenants",
        "credentials",
        "audit_events",
        "erasures",
    }
    assert digests(before, [tenant_id, name]) == digests(after, [tenant_id])
    with pytest.raises(errors.CredentialInvalidError):
        await tenant.client.identity.who_am_i(WhoAmIRequest())
    with pytest.raises(errors.NotFoundError):
        await operator.identity.get_tenant(GetTenantRequest(tenant_id=tenant_id))
    listing = operator.identity.list_tenants(ListTenantsRequest(page_size=1000))
    assert tenant_id not in [one.tenant_id async for one in listing]
    assert (await operator.identity.erase_tenant(request)).erasure == erasure
    got = await operator.identity.get_tenant_erasure(GetTenantErasureRequest(tenant_id=tenant_id))
    assert got.erasure == erasure
    again = await operator.identity.create_tenant(CreateTenantRequest(name=name, request_id=name))
    assert again.tenant.tenant_id != tenant_id
    assert again.secret


def test_metadata_is_that_of_the_whole_hub() -> None:
    """The list is made from what the server imports: more tables than those of users."""
    assert {"operators", "hub_keys"} < set(metadata.tables)
