"""`make demo`: the hub at work on real texts, through `hub_client` alone.

Starts a hub in a fresh data directory, ingests every text file it is pointed at, and holds a short
conversation answered from what it found. A preference is learned, contradicted and restored, and
recalled by meaning. Restarts the hub, checks that everything is still there, and builds a context
of 500 tokens. Then the user is exported, erased, proved gone, and imported again. Exits with 1 when
any step fails.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from hub_client import HubClient, HubError
from hub_client.errors import NotFoundError
from hub_client.v1 import (
    AppendMessageRequest,
    BuildContextRequest,
    Context,
    ContextPart,
    ContextReason,
    CreateSessionRequest,
    CreateUserRequest,
    DocumentStatus,
    EraseUserRequest,
    ErasureState,
    ExportRecord,
    ExportUserRequest,
    GetContextRecordRequest,
    GetDocumentRequest,
    GetErasureRequest,
    GetMemoryHistoryRequest,
    GetUserRequest,
    ImportUserRequest,
    IngestDocumentRequest,
    ListDocumentsRequest,
    ListMemoriesRequest,
    ListMessagesRequest,
    MemoryEvent,
    MemoryType,
    RecallRequest,
    RememberOutcome,
    RememberRequest,
    RestoreMemoryRequest,
    Role,
    SearchHit,
    SearchRequest,
)
from scripts.hub_process import StartError, running_hub

ROOT: Final = Path(__file__).parent.parent
LARGEST_TEXT: Final = 4 << 20  # bytes: the contract's limit
EXCERPT: Final = 200  # characters
READY_SECONDS: Final = 600  # for one document, after those before it
ERASED_SECONDS: Final = 600
BUDGET: Final = 500  # tokens
QUESTIONS: Final = 3
# What the memories say, what contradicts the first, and a question that shares no word with both.
TEA: Final = "Ada drinks green tea in the morning."
COFFEE: Final = "Ada drinks black coffee in the morning."
MOVED: Final = "Ada moved to Lisbon last spring."
QUESTION: Final = "Which beverage should I offer her?"


@dataclass(frozen=True)
class Question:
    """What to ask, and which text must be among the best three (None = any)."""

    words: str
    source: str | None = None


REPOSITORY_QUESTIONS: Final = (
    Question("How does a search see writes that were made just before it?"),
    Question("Who may call a method, and where is that declared?", "protos/hub/v1/options.proto"),
    Question("What happens when a call is retried with the same request_id?"),
)

console = Console(highlight=False)


class DemoError(Exception):
    """A step did not do what it should."""


@dataclass(frozen=True)
class Story:
    """What was made, to be found again after the restart."""

    user_id: str
    session_id: str
    documents: int
    hits: Sequence[str]


def main() -> int:
    """Tell the story; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, help="folder of text files to ingest")
    corpus = parser.parse_args().corpus
    # Ends as Ctrl-C does: the hub is stopped and its folder removed.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        texts = read_texts(corpus)
        with tempfile.TemporaryDirectory(prefix="hub-demo-") as folder:
            tell(Path(folder) / "data", texts, questions(corpus, texts))
    except (DemoError, StartError, HubError) as error:
        console.print(f"[red]failed:[/] {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("[green]Everything is as it should be.[/]")
    return 0


def tell(data: Path, texts: Sequence[tuple[str, str]], asked: Sequence[Question]) -> None:
    """Run all steps over a hub in the folder `data`."""
    with running_hub(data) as (address, key), HubClient(address, key) as client:
        console.rule("a hub in a fresh folder")
        user_id = create_user(client)
        ingest(client, user_id, texts)
        session_id, hits = converse(client, user_id, asked)
        learn(client, user_id)
        story = Story(user_id, session_id, len(texts), hits)
    with running_hub(data) as (address, key), HubClient(address, key) as client:
        console.rule("the same hub after a restart")
        check_still_there(client, story, asked)
        console.rule(f"a context of at most {BUDGET} tokens")
        context = build_context(client, story)
        console.rule("exported, erased, proved gone")
        export = export_user(client, story)
        erase(client, story)
        check_gone(client, story, context)
        console.rule("imported again")
        bring_back(client, story, export)


def read_texts(corpus: Path | None) -> list[tuple[str, str]]:
    """Return path and content of every text file, the repository's own by default."""
    if corpus is None:
        paths = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("protos/**/*.proto"))]
        base = ROOT
    else:
        paths, base = sorted(path for path in corpus.rglob("*") if path.is_file()), corpus
    texts = []
    for path in paths:
        content = read_text(path)
        if content is not None:
            texts.append((str(path.relative_to(base)), content))
    if not texts:
        raise DemoError(f"no text files in {corpus}")
    return texts


def read_text(path: Path) -> str | None:
    """Return a file's text, or None when it is none, empty or too large."""
    if path.stat().st_size > LARGEST_TEXT:
        console.print(f"left out, larger than 4 MiB: {path.name}")
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError):
        return None
    return text if text.strip() and "\0" not in text else None


def questions(corpus: Path | None, texts: Sequence[tuple[str, str]]) -> Sequence[Question]:
    """Return what to ask: of another corpus, the titles of some of its texts."""
    if corpus is None:
        return REPOSITORY_QUESTIONS
    titles = {path: title(path, content) for path, content in texts}
    shared = Counter(titles.values())
    unique = [path for path in titles if shared[titles[path]] == 1]
    chosen = unique[:: max(1, len(unique) // QUESTIONS)][:QUESTIONS]
    return [Question(titles[path], path) for path in chosen] or [Question(next(iter(shared)))]


def title(path: str, content: str) -> str:
    """Return the first line of a text that says something, else the name of its file."""
    lines = (line.strip(" #*=-/") for line in content.splitlines())
    speaking = (line for line in lines if sum(word.isalpha() for word in line.split()) > 1)
    return next(speaking, Path(path).name)[:EXCERPT]


def create_user(client: HubClient) -> str:
    """Create the user of this story; return the id."""
    request = CreateUserRequest(email="ada@example.org", display_name="Ada")
    user = client.identity.create_user(request).user
    console.print(f"created user {user.display_name} ({user.user_id})")
    return user.user_id


def ingest(client: HubClient, user_id: str, texts: Sequence[tuple[str, str]]) -> None:
    """Ingest all texts and wait until each is ready."""
    waiting = []
    with Progress(console=console) as progress:
        task = progress.add_task("ingesting", total=len(texts))
        for path, content in texts:
            request = IngestDocumentRequest(
                user_id=user_id, title=Path(path).name[:500], text=content, source_url=path[:2048]
            )
            waiting.append(client.knowledge.ingest_document(request).document.document_id)
        chunks = 0
        for document_id in waiting:
            chunks += wait_until_ready(client, document_id)
            progress.advance(task)
    console.print(f"{len(texts)} documents are ready, in {chunks} chunks")


def wait_until_ready(client: HubClient, document_id: str) -> int:
    """Return the number of chunks of a document once it is ready."""
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        request = GetDocumentRequest(document_id=document_id)
        document = client.knowledge.get_document(request).document
        if document.status == DocumentStatus.DOCUMENT_STATUS_READY:
            return document.chunk_count
        if document.status == DocumentStatus.DOCUMENT_STATUS_FAILED:
            raise DemoError(f"{document.title}: {document.error}")
        time.sleep(0.05)
    raise DemoError(f"a document was not ready after {READY_SECONDS} seconds")


def converse(client: HubClient, user_id: str, asked: Sequence[Question]) -> tuple[str, list[str]]:
    """Ask, answer with the best chunk, and keep both; return the session and the chunks' ids."""
    request = CreateSessionRequest(user_id=user_id, session_title="What is this?")
    session_id = client.chat.create_session(request).session.session_id
    best = []
    for question in asked:
        say(client, session_id, Role.ROLE_USER, question.words)
        hit = search(client, user_id, question, session_id)
        say(client, session_id, Role.ROLE_ASSISTANT, hit.chunk.content)
        best.append(hit.chunk.chunk_id)
        console.print(f"\n[bold]{escape(question.words)}[/]")
        console.print(f"  {excerpt(hit.chunk.content)}", markup=False)
        place = f"{source(hit)}, chunk {hit.chunk.chunk_index}, score {hit.score:.2f}"
        console.print(f"  [dim]{escape(place)}[/]")
    console.print()
    return session_id, best


def say(client: HubClient, session_id: str, role: Role.ValueType, content: str) -> None:
    """Append a message."""
    client.chat.append_message(
        AppendMessageRequest(session_id=session_id, role=role, content=content)
    )


def search(client: HubClient, user_id: str, question: Question, session_id: str = "") -> SearchHit:
    """Return the best hit of a search."""
    request = SearchRequest(user_id=user_id, query=question.words, top_k=3, session_id=session_id)
    hits = client.knowledge.search(request).hits
    sources = [source(hit) for hit in hits]
    if not hits or (question.source and question.source not in sources):
        raise DemoError(f"asked {question.words!r}, found {sources}")
    return hits[0]


def source(hit: SearchHit) -> str:
    """Return where a hit's document comes from."""
    return hit.chunk.metadata.fields["source"].string_value


def excerpt(text: str) -> str:
    """Return the beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= EXCERPT else f"{line[:EXCERPT]}…"


def learn(client: HubClient, user_id: str) -> None:
    """Learn a preference, hear the contrary, and undo that; a fact stands beside them."""
    remember(client, user_id, MOVED, MemoryType.MEMORY_TYPE_FACT)
    tea = remember(client, user_id, TEA, key="drink.favourite")
    recall(client, user_id, TEA)
    remember(client, user_id, COFFEE, key="drink.favourite", expected="SUPERSEDED")
    recall(client, user_id, COFFEE)
    client.memory.restore_memory(RestoreMemoryRequest(memory_id=tea))
    console.print(f"restored: {TEA}")
    recall(client, user_id, TEA)
    request = GetMemoryHistoryRequest(memory_id=tea)
    told = []
    for revision in client.memory.get_memory_history(request).memory_history.revisions:
        event = name(MemoryEvent.Name(revision.event), "MEMORY_EVENT_")
        told.append((event, revision.memory.memory_content))
        console.print(f"  [dim]{event:10} {revision.memory.memory_content}[/]")
    if ("superseded", TEA) not in told or ("superseded", COFFEE) not in told:
        raise DemoError(f"the history is {told}")


def remember(
    client: HubClient,
    user_id: str,
    content: str,
    kind: MemoryType.ValueType = MemoryType.MEMORY_TYPE_PREFERENCE,
    key: str = "",
    expected: str = "CREATED",
) -> str:
    """Remember something; return the memory's id."""
    answer = client.memory.remember(
        RememberRequest(user_id=user_id, memory_type=kind, memory_content=content, memory_key=key)
    )
    if answer.outcome != RememberOutcome.Value(f"REMEMBER_OUTCOME_{expected}"):
        raise DemoError(f"{content!r}: {RememberOutcome.Name(answer.outcome)}")
    console.print(f"remembered, {expected.lower()}: {content}")
    return answer.memory.memory_id


def recall(client: HubClient, user_id: str, expected: str) -> None:
    """Recall a memory by meaning."""
    hits = client.memory.recall(RecallRequest(user_id=user_id, query=QUESTION, top_k=1)).hits
    found = [hit.memory.memory_content for hit in hits]
    if found != [expected] or hits[0].word_score > 0:
        raise DemoError(f"asked {QUESTION!r}, recalled {found}")
    console.print(f"[bold]{QUESTION}[/]\n  {found[0]} [dim](score {hits[0].score:.2f})[/]")


def check_still_there(client: HubClient, story: Story, asked: Sequence[Question]) -> None:
    """Check that all that was stored is found again."""
    user = client.identity.get_user(GetUserRequest(user_id=story.user_id)).user
    expect("user", user.display_name, "Ada")
    words = [question.words for question in asked]
    messages = list(client.chat.list_messages(ListMessagesRequest(session_id=story.session_id)))
    expect("messages", [message.seq for message in messages], list(range(1, 2 * len(asked) + 1)))
    expect("questions", [message.content for message in messages[::2]], words)
    memories = client.memory.list_memories(ListMemoriesRequest(user_id=story.user_id))
    stored = sorted(memory.memory_content for memory in memories)
    expect("memories", stored, sorted((TEA, MOVED)))
    documents = list(client.knowledge.list_documents(ListDocumentsRequest(user_id=story.user_id)))
    expect("documents", len(documents), story.documents)
    found = [search(client, story.user_id, question).chunk.chunk_id for question in asked]
    expect("search results", found, list(story.hits))
    recall(client, story.user_id, TEA)


def expect(what: str, found: object, expected: object) -> None:
    """Raise DemoError unless both are equal."""
    if found != expected:
        raise DemoError(f"{what}: {found}, expected {expected}")
    console.print(f"{what}: all there")


def build_context(client: HubClient, story: Story) -> Context:
    """Build a context, print it with its ledger, and look whether its record tells the same."""
    request = BuildContextRequest(session_id=story.session_id, query=QUESTION, token_budget=BUDGET)
    context = client.chat.build_context(request).context
    for block in context.blocks:
        part = name(ContextPart.Name(block.part), "CONTEXT_PART_")
        console.print(f"[bold]{part}[/], {block.token_count} tokens")
        console.print(f"  {excerpt(block.content)}", markup=False)
    considered: Counter[tuple[str, str]] = Counter()
    tokens: Counter[tuple[str, str]] = Counter()
    for entry in context.ledger:
        part = name(ContextPart.Name(entry.part), "CONTEXT_PART_")
        reason = name(ContextReason.Name(entry.reason), "CONTEXT_REASON_")
        considered[part, reason] += 1
        tokens[part, reason] += entry.token_count
    console.print("the ledger of all that was considered:")
    for (part, reason), count in considered.items():
        console.print(f"  {part:10}{reason:12}{count:4} of {tokens[part, reason]:7,} tokens")
    total = sum(block.token_count for block in context.blocks)
    if TEA not in [block.content for block in context.blocks] or total > BUDGET:
        raise DemoError(f"a context of {total} tokens, or without {TEA!r}")
    console.print(f"{total} tokens of {BUDGET}")
    get = GetContextRecordRequest(context_id=context.context_id)
    expect("its record", client.chat.get_context_record(get).context, context)
    return context


def export_user(client: HubClient, story: Story) -> list[ExportRecord]:
    """Export the user; return all records, the summary last."""
    stream = client.identity.export_user(ExportUserRequest(user_id=story.user_id))
    records = [answer.export_record for answer in stream]
    if not records[-1].HasField("summary"):
        raise DemoError("an export without its summary")
    counts = Counter(record.WhichOneof("record") for record in records)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    console.print(f"exported: {told}")
    return records


def erase(client: HubClient, story: Story) -> None:
    """Erase the user, and print the receipt."""
    request = EraseUserRequest(user_id=story.user_id)
    erasure = client.identity.erase_user(request).erasure
    get = GetErasureRequest(user_id=story.user_id)
    deadline = time.monotonic() + ERASED_SECONDS
    while erasure.state != ErasureState.ERASURE_STATE_FINISHED:
        if time.monotonic() > deadline:
            raise DemoError(f"not erased after {ERASED_SECONDS} seconds")
        time.sleep(0.05)
        erasure = client.identity.get_erasure(get).erasure
    rows = sum(one.rows for one in erasure.erased_rows)
    views = sum(one.views for one in erasure.erased_views)
    console.print(
        f"erased: {rows} rows in {len(erasure.erased_rows)} tables, {views} views and files;"
        f" {erasure.probe.lookups} look-ups found {erasure.probe.rows} rows"
    )
    if not rows or erasure.probe.rows:
        raise DemoError(f"the receipt is {erasure}")


def check_gone(client: HubClient, story: Story, context: Context) -> None:
    """Check that the user is answered as if he had never been."""
    session_id, user_id = story.session_id, story.user_id
    reads: dict[str, Callable[[], object]] = {
        "GetUser": lambda: client.identity.get_user(GetUserRequest(user_id=user_id)),
        "ListMessages": lambda: list(
            client.chat.list_messages(ListMessagesRequest(session_id=session_id))
        ),
        "Recall": lambda: client.memory.recall(RecallRequest(user_id=user_id, query=QUESTION)),
        "Search": lambda: client.knowledge.search(SearchRequest(user_id=user_id, query=QUESTION)),
        "GetContextRecord": lambda: client.chat.get_context_record(
            GetContextRecordRequest(context_id=context.context_id)
        ),
    }
    for method, read in reads.items():
        try:
            answer = read()
        except NotFoundError:
            console.print(f"{method}: NOT_FOUND")
        else:
            raise DemoError(f"{method} answers {answer}")


def bring_back(client: HubClient, story: Story, export: Sequence[ExportRecord]) -> None:
    """Import the user from his export; another export says the same."""
    client.identity.import_user(ImportUserRequest(export_record=record) for record in export)
    again = export_user(client, story)
    expect("records", again[-1].summary.sha256.hex(), export[-1].summary.sha256.hex())
    recall(client, story.user_id, TEA)


def name(value: str, prefix: str) -> str:
    """Return the name of an enum's value as people read it."""
    return value.removeprefix(prefix).lower().replace("_", " ")


if __name__ == "__main__":
    sys.exit(main())
