"""Filters on metadata mean in Postgres what the contract says they mean."""

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hub_client.v1 import (
    MetadataEquals,
    MetadataExists,
    MetadataFilter,
    MetadataFilters,
    MetadataIn,
    MetadataRange,
    MetadataValue,
    SearchRequest,
    UpdateDocumentRequest,
)
from hub_server.caller import Caller
from hub_server.errors import HubError
from hub_server.ids import new_id
from hub_server.knowledge.filters import condition_of
from hub_server.knowledge.search_repository import SearchRepository
from tests.support import Hub, Tenant

_NAMES: Final = ("a", "b", "a.b", '"', "\\", "$", "é\n", "", "0", "猫")
_PLAIN: Final = (0, 1, -1.5, 1e22, 1e-7, 2**53, True, False, None)
_TEXTS: Final = (
    "",
    "a",
    "1",
    "true",
    "null",
    '" || true == true',
    "\\",
    "é",
    "猫\u2028",
    "\U00020000",
)
_ROWS: Final = 300
_ALL: Final = 10 * _ROWS

_INSERT: Final = """
    WITH given AS (
        SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::jsonb[], %s::jsonb[])
            AS given (document_id, chunk_id, of_document, own)),
    documents AS (
        INSERT INTO documents (tenant_id, document_id, user_id, title, text, status, content_hash,
                               chunk_count, space_seq, revision, metadata)
        SELECT %s, document_id, %s, 'A title', 'A text', 'ready', '', 1, 1, 1, of_document
        FROM given
        RETURNING tenant_id, user_id, document_id)
    INSERT INTO chunks (tenant_id, chunk_id, document_id, user_id, chunk_index, content,
                        token_count, embedding, embedding_model, metadata)
    SELECT tenant_id, chunk_id, document_id, user_id, 0, 'A text', 1, '', 'model', own
    FROM given JOIN documents USING (document_id)
"""


@dataclass
class Shelf:
    """A user's chunks, by id, with what a filter looks at."""

    hub: Hub
    caller: Caller
    user_id: str
    document_ids: list[str]
    merged: dict[str, dict[str, Any]]

    async def found(self, given: MetadataFilter) -> list[set[str]]:
        """Return the ids of chunks that meet a filter, in each of three ways."""
        condition = condition_of("filter", given)
        async with self.hub.database.transaction(self.caller) as connection:
            repository = SearchRepository(connection, self.caller.tenant_id, self.user_id)
            return [
                set(await repository.filtered((), condition, _ALL)),
                set(await repository.filtered(self.document_ids, condition, _ALL)),
                set((await repository.shown_chunks(list(self.merged), (), condition))[0]),
            ]


@pytest.fixture(scope="module")
async def shelf(hub: Hub) -> Shelf:
    """Chunks with random metadata of their own, in documents with random metadata."""
    tenant = await hub.new_tenant()
    user_id = (await tenant.new_user()).user_id
    chance = random.Random(11)  # noqa: S311 - repeatable, not secret
    pairs = [(_struct(chance, 1), _struct(chance, 2)) for _ in range(_ROWS)]
    document_ids, chunk_ids = ([new_id() for _ in pairs] for _ in range(2))
    texts = ([json.dumps(pair[place]) for pair in pairs] for place in range(2))
    hub.sql(_INSERT, document_ids, chunk_ids, *texts, tenant.tenant_id, user_id)
    merged = [of_document | own for of_document, own in pairs]
    caller = Caller.hub(tenant.tenant_id)
    return Shelf(hub, caller, user_id, document_ids, dict(zip(chunk_ids, merged, strict=True)))


def _struct(chance: random.Random, depth: int) -> dict[str, Any]:
    names = chance.sample(_NAMES, chance.randrange(1, 5))
    return {name: _json(chance, depth) for name in names}


def _json(chance: random.Random, depth: int) -> Any:
    kind = chance.random()
    if depth < 4 and kind < 0.3:
        return _struct(chance, depth + 1)
    if depth < 4 and kind < 0.5:
        return [_json(chance, depth + 1) for _ in range(chance.randrange(4))]
    return chance.choice(_PLAIN + _TEXTS)


_paths = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3)
_texts = st.builds(MetadataValue, text=st.sampled_from(_TEXTS) | st.text(max_size=3))
_texts = _texts.filter(lambda value: "\0" not in value.text)
_numbers = st.sampled_from((0.0, 1.0, -1.5, 1e22, 1e-7, 2.0**53))
_numbers |= st.floats(allow_nan=False, allow_infinity=False)
_number_values = st.builds(MetadataValue, number=_numbers)
_values = _texts | _number_values | st.builds(MetadataValue, flag=st.booleans())


def _ranges(values: st.SearchStrategy[MetadataValue]) -> st.SearchStrategy[MetadataRange]:
    low = st.fixed_dictionaries({}, optional={"at_least": values})
    high = st.fixed_dictionaries({}, optional={"below": values})
    inclusive = st.fixed_dictionaries({"path": _paths, "at_most": values})
    exclusive = st.fixed_dictionaries({"path": _paths, "above": values})
    pairs = st.tuples(inclusive, low) | st.tuples(exclusive, high)

    def made(pair: tuple[Any, Any]) -> MetadataRange:
        return MetadataRange(**pair[0], **pair[1])

    return pairs.map(made)


_leaves = (
    st.builds(MetadataFilter, equals=st.builds(MetadataEquals, path=_paths, value=_values))
    | st.builds(
        MetadataFilter,
        is_in=st.builds(MetadataIn, path=_paths, values=st.lists(_values, min_size=1, max_size=3)),
    )
    | st.builds(MetadataFilter, range=_ranges(_number_values) | _ranges(_texts))
    | st.builds(MetadataFilter, exists=st.builds(MetadataExists, path=_paths))
)


def _several(inner: st.SearchStrategy[MetadataFilter]) -> st.SearchStrategy[MetadataFilter]:
    of = st.builds(MetadataFilters, filters=st.lists(inner, min_size=1, max_size=3))
    return (
        st.builds(MetadataFilter, all_of=of)
        | st.builds(MetadataFilter, any_of=of)
        | st.builds(MetadataFilter, none_of=of)
    )


def _meets(metadata: dict[str, Any], given: MetadataFilter) -> bool:
    """Tell whether metadata meets a filter, by the words of the contract."""
    kind = given.WhichOneof("condition") or ""
    if kind in ("all_of", "any_of", "none_of"):
        held = [_meets(metadata, one) for one in getattr(given, kind).filters]
        return {"all_of": all(held), "any_of": any(held), "none_of": not any(held)}[kind]
    leaf = getattr(given, kind)
    values = [metadata]
    for name in leaf.path:
        values = [one[name] for one in _items(values) if isinstance(one, dict) and name in one]
    if kind == "exists":
        return bool(values)
    return any(_test(leaf)(one) for one in _items(values))


def _items(values: list[Any]) -> Iterator[Any]:
    for value in values:
        yield from value if isinstance(value, list) else [value]


def _test(leaf: Any) -> Callable[[Any], bool]:
    if isinstance(leaf, MetadataEquals):
        return lambda one: _plain(one) == _wanted(leaf.value)
    if isinstance(leaf, MetadataIn):
        return lambda one: _plain(one) in [_wanted(value) for value in leaf.values]
    bounds = {bound.name: _wanted(value) for bound, value in leaf.ListFields()[1:]}
    compare: dict[str, Callable[[Any, Any], bool]] = {
        "at_least": lambda one, bound: one >= bound,
        "above": lambda one, bound: one > bound,
        "at_most": lambda one, bound: one <= bound,
        "below": lambda one, bound: one < bound,
    }
    return lambda one: all(
        (_plain(one) or ("",))[0] == bound[0] and compare[name](_plain(one), bound)
        for name, bound in bounds.items()
    )


def _plain(one: Any) -> tuple[str, Any] | None:
    kinds = {str: "text", bool: "flag", int: "number", float: "number"}
    return (kinds[type(one)], one) if type(one) in kinds else None


def _wanted(value: MetadataValue) -> tuple[str, Any]:
    kind = value.WhichOneof("value") or ""
    return kind, getattr(value, kind)


def _equals(value: MetadataValue, *path: str) -> MetadataFilter:
    return MetadataFilter(equals=MetadataEquals(path=path, value=value))


def _none(*given: MetadataFilter) -> MetadataFilter:
    return MetadataFilter(none_of=MetadataFilters(filters=given))


@settings(max_examples=50, deadline=None)
@given(given_filter=st.recursive(_leaves, _several, max_leaves=6))
@example(
    given_filter=MetadataFilter(
        none_of=MetadataFilters(filters=[_equals(MetadataValue(number=1), "a")])
    )
)
@example(given_filter=_equals(MetadataValue(text="1"), "a"))
async def test_a_filter_finds_what_it_says(shelf: Shelf, given_filter: MetadataFilter) -> None:
    """The same chunks as a plain reading of the contract in Python, in all places it is asked."""
    wanted = {
        chunk_id for chunk_id, metadata in shelf.merged.items() if _meets(metadata, given_filter)
    }
    for found in await shelf.found(given_filter):
        assert found == wanted


async def test_filters_of_the_test_find_something(shelf: Shelf) -> None:
    """The random chunks have what the filters look for: in themselves and in their documents."""
    for value in (MetadataValue(number=1), MetadataValue(text="a"), MetadataValue(flag=True)):
        found, *others = await shelf.found(_equals(value, "a"))
        assert 0 < len(found) < _ROWS / 2
        assert [found] * 2 == others


async def test_the_owners_function_stays_in_the_tenant_and_with_the_user(
    shelf: Shelf, tenant: Tenant
) -> None:
    """It reads past row security, and yet finds nothing for another tenant or user."""
    user = await tenant.new_user()
    condition = condition_of("filter", _none(_equals(MetadataValue(text="x"), "x")))
    for caller, user_id in (
        (Caller.hub(tenant.tenant_id), shelf.user_id),
        (shelf.caller, user.user_id),
    ):
        async with shelf.hub.database.statement(caller) as connection:
            repository = SearchRepository(connection, caller.tenant_id, user_id)
            assert await repository.filtered((), condition, _ALL) == []


def _deep(levels: int) -> MetadataFilter:
    given = _equals(MetadataValue(number=1), "a")
    for _ in range(levels - 1):
        given = MetadataFilter(all_of=MetadataFilters(filters=[given]))
    return given


_ONE: Final = MetadataValue(number=1)


@pytest.mark.parametrize(
    ("given_filter", "field"),
    [
        (MetadataFilter(), "filter"),
        (_deep(9), "filter" + ".all_of.filters[0]" * 8),
        (MetadataFilter(any_of=MetadataFilters(filters=[_deep(1)] * 100)), "filter"),
        (_equals(MetadataValue(), "a"), "filter.equals.value"),
        (
            MetadataFilter(is_in=MetadataIn(path=["a"], values=[_ONE, MetadataValue()])),
            "filter.is_in.values[1]",
        ),
        (MetadataFilter(range=MetadataRange(path=["a"])), "filter.range"),
        (
            MetadataFilter(range=MetadataRange(path=["a"], at_least=_ONE, above=_ONE)),
            "filter.range.above",
        ),
        (
            MetadataFilter(
                range=MetadataRange(path=["a"], above=_ONE, below=MetadataValue(text="b"))
            ),
            "filter.range.below",
        ),
        (
            MetadataFilter(range=MetadataRange(path=["a"], below=MetadataValue(flag=True))),
            "filter.range.below",
        ),
        (
            _none(_deep(1), MetadataFilter(range=MetadataRange(path=["a"]))),
            "filter.none_of.filters[1].range",
        ),
    ],
    ids=str,
)
def test_a_filter_that_makes_no_sense_is_refused(given_filter: MetadataFilter, field: str) -> None:
    """The error names the place."""
    with pytest.raises(HubError) as caught:
        condition_of("filter", given_filter)
    assert [name for name, _ in caught.value.violations] == [field]


def test_a_filter_as_deep_and_as_large_as_allowed_is_taken() -> None:
    """Eight conditions deep, a hundred in all."""
    assert condition_of("filter", _deep(8)).names == ["a"]
    assert condition_of("filter", _none(*[_deep(1)] * 99)).names == ()


async def test_a_search_sees_metadata_as_it_is_now(tenant: Tenant) -> None:
    """A change of it needs no new chunks; what every chunk bears can be asked for, too."""
    user = await tenant.new_user()
    owls, swans = await asyncio.gather(
        tenant.ingest(user, "Owls", "Birds of the night.", metadata={"shelf": {"row": 1}}),
        tenant.ingest(user, "Swans", "Birds of the lake.", metadata={"shelf": {"row": 2}}),
    )

    async def found(given: MetadataFilter) -> list[str]:
        request = SearchRequest(user_id=user.user_id, query="birds", filter=given)
        hits = (await tenant.client.knowledge.search(request)).hits
        return [hit.chunk.document_id for hit in hits]

    first = _equals(_ONE, "shelf", "row")
    assert await found(first) == [owls.document_id]
    assert await found(_equals(MetadataValue(text="1"), "shelf", "row")) == []
    assert await found(_equals(MetadataValue(text="Swans"), "document_title")) == [
        swans.document_id
    ]
    for document, row in ((owls, 2), (swans, 1)):
        update = UpdateDocumentRequest(document_id=document.document_id)
        update.metadata.update({"shelf": {"row": row}})
        await tenant.client.knowledge.update_document(update)
    assert await found(first) == [swans.document_id]
