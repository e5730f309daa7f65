"""The composition root: the only place where the parts of a hub process meet."""

import asyncio
import datetime as dt
import gc
import signal
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final, cast

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from hub_client.v1 import chat_pb2, identity_pb2, knowledge_pb2, memory_pb2
from hub_server import preflight
from hub_server.chat.appends import Appends
from hub_server.chat.search import MessageSearch
from hub_server.chat.service import ChatService
from hub_server.chat.servicer import ChatServicer
from hub_server.chat.tokens import Tokens
from hub_server.chat.watching import Watches
from hub_server.context.service import Contexts
from hub_server.database import Database
from hub_server.embedding import remote
from hub_server.embedding.models import Models, load_models
from hub_server.erasure.service import Erasures
from hub_server.identity.authentication import Authenticator
from hub_server.identity.first_start import ensure_default_tenant, read_peppers, shared_key
from hub_server.identity.keys import Keys, Tenants
from hub_server.identity.logins import Logins, Terms, account_of
from hub_server.identity.service import IdentityService
from hub_server.identity.servicer import IdentityServicer
from hub_server.jobs import forgetting, purge
from hub_server.jobs.erasure import Erasing
from hub_server.jobs.ingestion import Ingestion
from hub_server.jobs.message_embedding import MessageEmbedding
from hub_server.jobs.parsing import Parsing
from hub_server.jobs.reembedding import Reembedding
from hub_server.knowledge.index import Indexes
from hub_server.knowledge.own_chunks import OwnVectors
from hub_server.knowledge.reembedding import Reembeddings
from hub_server.knowledge.search import KnowledgeSearch
from hub_server.knowledge.service import KnowledgeService
from hub_server.knowledge.servicer import KnowledgeServicer
from hub_server.knowledge.watching import DocumentWatches
from hub_server.memory.rules import Clock, Rules, utc_now
from hub_server.memory.service import MemoryService
from hub_server.memory.servicer import MemoryServicer
from hub_server.paging import LARGEST_ANSWER, PageTokens
from hub_server.passwords import Passwords
from hub_server.pgvector import EXACT_COST, PgVector
from hub_server.retrieval.index import Index
from hub_server.retrieval.views import Views
from hub_server.rpc import MOST_READS, Rpc
from hub_server.search import Search
from hub_server.settings import Settings
from hub_server.tokenizer import Tokenizer
from hub_server.transfer.importing import Transfers
from hub_server.wakeups import Wakeups

SERVICES: Final = {
    "chat": chat_pb2.DESCRIPTOR.services_by_name["ChatService"],
    "identity": identity_pb2.DESCRIPTOR.services_by_name["IdentityService"],
    "knowledge": knowledge_pb2.DESCRIPTOR.services_by_name["KnowledgeService"],
    "memory": memory_pb2.DESCRIPTOR.services_by_name["MemoryService"],
}
_MEBIBYTE: Final = 1 << 20
# A document of 4 MiB and what stands beside it; the limits of the fields are checked after that.
_LARGEST_REQUEST: Final = 8 * _MEBIBYTE
# So many of the largest files, or many more small ones, are received at a time.
_WHOLE_UPLOADS: Final = 4
_LOOKAHEAD: Final = 1 << 18
_LAST_REPLIES_SECONDS: Final = 0.5
_EMBEDDING_THREADS: Final = 2
_REMOTE_THREADS: Final = 16
# Objects made and not yet freed; several hundred calls under way hold fewer.
_COLLECTED_AFTER: Final = 25_000

log: structlog.stdlib.BoundLogger = structlog.get_logger("hub.server")


@asynccontextmanager
async def serving(
    settings: Settings, database_url: str, *, clock: Clock = utc_now
) -> AsyncIterator[str]:
    """Serve the hub over a migrated database; yield the bound address, ``host:port``.

    ``clock`` tells when memories are made, expire and fade.

    At the end: health NOT_SERVING, no new calls, running calls finish or are broken off after
    ``settings.drain`` seconds. Raises UnfitDatabaseError, OSError when the address cannot be bound,
    and ContractError.
    """
    async with AsyncExitStack() as stack:
        database = _database(settings, database_url)
        stack.push_async_callback(database.close)
        await _prepare(settings, database)
        models = await asyncio.to_thread(
            load_models,
            settings.embedding,
            settings.embedding_key,
            settings.other_embeddings,
            settings.embedding_models_key,
        )
        stack.callback(models.close)
        embedding = MessageEmbedding(database, models)
        servicers, jobs = await _compose(settings, database, models, embedding, clock, stack)
        for job in (*jobs, embedding.run(), purge.run(database)):
            stack.push_async_callback(_cancel, asyncio.create_task(job))
        yield await _listen(settings, database, servicers, stack)


async def prepare(settings: Settings, database_url: str) -> None:
    """Do, before workers start at once, what one alone shall do: the first start.

    Raises UnfitDatabaseError, and ValueError when HUB_PEPPER is malformed.
    """
    database = _database(settings, database_url)
    try:
        await _prepare(settings, database)
        read_peppers(settings)
    finally:
        await database.close()


def _database(settings: Settings, url: str) -> Database:
    return Database(
        url,
        role=settings.server_role,
        pool_size=settings.pool_size,
        pooler=settings.pooler == "transaction",
    )


async def _prepare(settings: Settings, database: Database) -> None:
    await preflight.check(database, with_pgvector=settings.index == "pgvector")
    key_file = settings.data_dir / "service.key"
    if await ensure_default_tenant(database, key_file):
        log.info("first start", service_key=str(key_file))


async def _compose(
    settings: Settings,
    database: Database,
    models: Models,
    embedding: MessageEmbedding,
    clock: Clock,
    stack: AsyncExitStack,
) -> tuple[dict[str, object], Sequence[Coroutine[Any, Any, None]]]:
    """Build the servicers, by room, and the jobs that work for them."""
    pages = PageTokens(await shared_key(database, "page_token"))
    passwords = await asyncio.to_thread(
        Passwords, read_peppers(settings), settings.password_min_length
    )
    stack.callback(passwords.close)
    index = _index(settings, database)
    stack.push_async_callback(index.close)
    search = _search(settings, models, index)
    stack.callback(search.close)
    lease = dt.timedelta(seconds=settings.ingestion_lease)
    parsing = Parsing(megabytes=settings.parse_mb, seconds=settings.parse_seconds)
    ingestion = Ingestion(database, models, lease, parsing)
    terms = _terms(settings, await shared_key(database, "login_throttle"))
    wakeups = Wakeups(database)
    if settings.pooler == "none":  # through a pooler nobody can listen, so watchers look again
        stack.push_async_callback(_cancel, asyncio.create_task(wakeups.run()))
    erasing = Erasing(database, index, partial(account_of, terms.account_key), lease)

    def came(tenant_id: str, user_id: str) -> None:
        """Process and embed what a user who was imported brought."""
        ingestion.wake()
        embedding.wake(tenant_id, user_id)

    identity = IdentityServicer(
        IdentityService(database, passwords),
        Logins(database, passwords, terms),
        Keys(database),
        Tenants(database),
        Transfers(database, search.dimension_of, came),
        Erasures(database, wakeups, erasing.wake, await shared_key(database, "erasure")),
        pages,
    )
    knowledge = KnowledgeService(database, search, ingestion.wake, settings.upload_mb)
    found = KnowledgeSearch(database, search)
    memory = MemoryService(database, search, _memory_rules(settings), clock)
    messages = MessageSearch(database, search, embedding.wake)
    tokenizer = await asyncio.to_thread(Tokenizer)
    stack.callback(tokenizer.close)
    chat, tokens = ChatService(database, search), Tokens(database)
    appends = Appends(database, tokens, tokenizer, embedding.wake)
    stack.push_async_callback(appends.close)
    rooms: dict[str, KnowledgeSearch | MemoryService | MessageSearch]
    rooms = {"knowledge": found, "memory": memory, "messages": messages}
    pulls = {kind: room.pull for kind, room in rooms.items()}
    reembedding = Reembedding(database, search, pulls, lease)
    contexts = Contexts(
        database,
        search,
        tokenizer,
        {kind: room.source_of for kind, room in rooms.items()},
        _memory_rules(settings),
        clock,
    )
    watches = Watches(chat, wakeups, settings.heartbeat)
    document_watches = DocumentWatches(knowledge, wakeups, settings.heartbeat)
    return {
        "identity": identity,
        "chat": ChatServicer(chat, appends, tokens, watches, messages, contexts, pages),
        "memory": MemoryServicer(memory, pages),
        "knowledge": KnowledgeServicer(
            knowledge,
            found,
            OwnVectors(database, search),
            Reembeddings(database, models, reembedding.wake),
            document_watches,
            Indexes(search, found, {"memory": memory.source, "messages": messages.source}),
            pages,
        ),
    }, (ingestion.run(), reembedding.run(), erasing.run(), forgetting.run(database, index, wakeups))


def _terms(settings: Settings, account_key: bytes) -> Terms:
    return Terms(
        token_ttl=dt.timedelta(seconds=settings.token_ttl),
        refresh_ttl=dt.timedelta(seconds=settings.refresh_ttl),
        attempts=settings.login_attempts,
        window=dt.timedelta(seconds=settings.login_window),
        account_key=account_key,
    )


def _search(settings: Settings, models: Models, index: Index) -> Search:
    # A thread that waits for another server computes nothing.
    is_remote = remote(settings.embedding) is not None
    return Search(models, index, _REMOTE_THREADS if is_remote else _EMBEDDING_THREADS)


def _index(settings: Settings, database: Database) -> Index:
    exact_max_bytes = int(settings.exact_max_mb * _MEBIBYTE)
    views = Views(
        exact_max_bytes=exact_max_bytes,
        memory_bytes=settings.view_memory_mb * _MEBIBYTE,
        folder=settings.data_dir / "views",
    )
    if settings.index == "hnswlib":
        return views
    return PgVector(database, views, exact_max_bytes // EXACT_COST)


def _memory_rules(settings: Settings) -> Rules:
    return Rules(
        near_duplicate=settings.near_duplicate,
        half_life=dt.timedelta(days=settings.confidence_half_life),
        hourly_rate=settings.remember_rate,
    )


async def _listen(
    settings: Settings, database: Database, servicers: dict[str, object], stack: AsyncExitStack
) -> str:
    authenticator = Authenticator(database, settings.max_calls + MOST_READS)
    stack.push_async_callback(authenticator.close)
    stack.push_async_callback(authenticator.write_used)
    stack.push_async_callback(_cancel, asyncio.create_task(authenticator.note_used()))
    rpc = Rpc(
        authenticator,
        authenticator.note_refusal,
        most_calls=settings.max_calls,
        most_streams=settings.max_streams,
        default_deadline=settings.default_deadline,
        stall=settings.stall,
        room=_WHOLE_UPLOADS * settings.upload_mb * _MEBIBYTE,
    )
    server = grpc.aio.server(
        options=(
            # Without 0 a second hub on this port would silently take half of the calls. Workers
            # share one, which their parent holds against every other hub; see cli.port.
            ("grpc.so_reuseport", int(settings.workers > 1)),
            ("grpc.max_receive_message_length", _LARGEST_REQUEST),
            ("grpc.max_send_message_length", LARGEST_ANSWER),
            # What gRPC takes of a stream before anybody reads it. It would measure the network, and
            # take tens of MB of each upload over a fast one, also of those refused.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", _LOOKAHEAD),
            # Calls that gRPC has read and we have not seen yet: beyond these it answers a bare
            # CANCELLED, so most of a flood must reach us, who answer OVERLOADED with RetryInfo.
            ("grpc.server.max_pending_requests", 8 * settings.max_calls),
            ("grpc.server.max_pending_requests_hard_limit", 16 * settings.max_calls),
            # A client that is gone without a word is noticed, and what it had open ends.
            ("grpc.keepalive_time_ms", 60_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            # Clients may ask every 20 seconds whether the hub is still there; gRPC's own limit
            # of five minutes would cut off those that watch.
            ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        )
    )
    for room, servicer in servicers.items():
        server.add_generic_rpc_handlers((rpc.handler(SERVICES[room], servicer),))
    health = health_aio.HealthServicer()
    generic = cast("grpc.aio.Server", _GenericOnly(server))
    health_pb2_grpc.add_HealthServicer_to_server(health, generic)
    if settings.with_reflection:
        names = [service.full_name for service in SERVICES.values()]
        reflected = reflection.aio.ReflectionServicer((*names, reflection.SERVICE_NAME))
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(  # type: ignore[no-untyped-call]
            reflected, generic
        )
    address = _bind(settings, server)
    await server.start()
    stack.push_async_callback(_stop, server, health, rpc, settings.drain)
    for service in SERVICES.values():
        await health.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)
    return address


def _bind(settings: Settings, server: grpc.aio.Server) -> str:
    host = settings.listen.rpartition(":")[0]
    try:
        if settings.tls_cert and settings.tls_key:
            pair = (settings.tls_key.read_bytes(), settings.tls_cert.read_bytes())
            port = server.add_secure_port(settings.listen, grpc.ssl_server_credentials([pair]))
        else:
            port = server.add_insecure_port(settings.listen)
    except RuntimeError as error:
        message = f"cannot listen on {settings.listen}: is another server there?"
        raise OSError(message) from error
    return f"{host}:{port}"


class _GenericOnly:
    """A server as generated code sees it, without the registration that costs every call."""

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Leave it at the generic handlers; see ``rpc``."""


async def _stop(
    server: grpc.aio.Server, health: health_aio.HealthServicer, rpc: Rpc, drain: float
) -> None:
    await health.enter_graceful_shutdown()
    await rpc.drain(drain)
    # What is left are streams without end, such as a watch of the health.
    await server.stop(_LAST_REPLIES_SECONDS)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def spare_the_collector() -> None:
    """Keep what was made at the start out of garbage collections, and have fewer of them.

    They took a fifth of the processor under load, though nearly all that a call leaves behind goes
    by reference counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER, 10, 10)


async def run(settings: Settings, database_url: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = stop_signal()
    async with serving(settings, database_url) as address:
        spare_the_collector()
        with announced(settings, address):
            await stopped.wait()


def stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set from now on, instead of ending the process."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()

    def stop(*_: object) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stopped.set)

    for number in (signal.SIGTERM, signal.SIGINT):
        # Not loop.add_signal_handler, which ends with the loop: a second signal would then kill
        # this process before it has stopped its Postgres.
        signal.signal(number, stop)
    return stopped


@contextmanager
def announced(settings: Settings, address: str) -> Iterator[None]:
    """Tell people and programs where the hub serves, for as long as it does."""
    file = settings.data_dir / "address"
    file.write_text(address)
    # For people; the log line below is for programs.
    print(  # noqa: T201
        f"Cortex Hub listens on {address}, its data is in {settings.data_dir}", flush=True
    )
    log.info("serving", address=address)
    yield
    log.info("stopping")
    file.unlink(missing_ok=True)
