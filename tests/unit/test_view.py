"""A view against a brute-force oracle, exact and with hnswlib."""

from collections.abc import Sequence
from zlib import crc32

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hub_server.retrieval.matrix import Matrix
from hub_server.retrieval.text import analyzer
from hub_server.retrieval.view import Candidate, Change, Flaws, IndexedRow, View

_DIMENSION = 8
_EXACT, _HNSW = 1 << 20, 0  # exact_max_bytes: never, always hnswlib
_BOTH = pytest.mark.parametrize("exact_max_bytes", [_EXACT, _HNSW], ids=["exact", "hnsw"])
_WORDS = ("apple", "pear", "plum", "fig", "quince", "medlar")
_QUERY = np.arange(1, _DIMENSION + 1, dtype=np.float32)


def _row(row_id: str, text: str = "", seed: int | None = None) -> IndexedRow:
    random = np.random.default_rng(crc32(row_id.encode()) if seed is None else seed)
    vector = random.standard_normal(_DIMENSION).astype("<f4")
    return IndexedRow(row_id, text, vector.tobytes())


def _view(exact_max_bytes: int, *changes: Change) -> View:
    view = View(_DIMENSION, "en", exact_max_bytes)
    view.apply(changes)
    view.build(lambda: False)
    return view


def _ids(found: Sequence[Candidate]) -> list[str]:
    return [candidate.row_id for candidate in found]


@st.composite
def _changes(draw: st.DrawFn) -> list[Change]:
    """Draw changes of few groups, so that groups are replaced, emptied, repeated, out of order."""
    changes = []
    for number in range(draw(st.integers(1, 12))):
        group = draw(st.sampled_from("abcd"))
        rows = tuple(
            _row(
                f"{group}{place}",
                " ".join(draw(st.lists(st.sampled_from(_WORDS), max_size=4))),
                seed=100 * number + place,
            )
            for place in range(draw(st.integers(0, 3)))
        )
        changes.append(Change(group, draw(st.integers(1, 15)), rows))
    return changes


def _expected(changes: Sequence[Change]) -> dict[str, IndexedRow]:
    """Return the rows that must be left: of each group those of the highest seq, first come."""
    newest: dict[str, Change] = {}
    for change in changes:
        if change.group_id not in newest or change.seq > newest[change.group_id].seq:
            newest[change.group_id] = change
    return {row.row_id: row for change in newest.values() for row in change.rows}


def _cosine(row: IndexedRow) -> float:
    vector: Matrix = np.frombuffer(row.vector, dtype="<f4")
    return float(vector @ _QUERY / np.linalg.norm(vector) / np.linalg.norm(_QUERY))


@_BOTH
@settings(max_examples=75, deadline=None)
@given(changes=_changes(), split=st.integers(0, 12))
def test_a_view_holds_what_was_applied_and_nothing_else(
    exact_max_bytes: int, changes: list[Change], split: int
) -> None:
    """Whatever is applied, in whatever pages: the rows, cosines and words of the newest changes."""
    view = _view(exact_max_bytes, *changes[:split])
    view.apply(changes[split:])
    view.apply(changes)  # a replay changes nothing
    rows = _expected(changes)
    found = view.search("apple", _QUERY, 100)
    assert len(view) == len(rows)
    assert view.applied_seq == max(change.seq for change in changes)
    assert {candidate.row_id: candidate.vector_score for candidate in found} == pytest.approx(
        {row_id: _cosine(row) for row_id, row in rows.items()}, abs=1e-5
    )
    with_word = {candidate.row_id for candidate in found if candidate.word_score > 0}
    assert with_word == {row_id for row_id, row in rows.items() if "apple" in row.text.split()}


@settings(max_examples=40, deadline=None)
@given(changes=_changes())
def test_order_does_not_depend_on_the_way_there(changes: list[Change]) -> None:
    """A view that followed every change answers as one built from the end state."""
    grown = _view(_EXACT)
    for change in changes:
        grown.apply([change])
    fresh = _view(_EXACT)
    for number, row in enumerate(_expected(changes).values()):
        fresh.apply([Change(row.row_id, number + 1, (row,))])
    expected = fresh.search("apple pear", _QUERY, 10)
    found = grown.search("apple pear", _QUERY, 10)
    assert _ids(found) == _ids(expected)
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-5)


@_BOTH
def test_equal_rows_come_in_the_order_of_their_ids(exact_max_bytes: int) -> None:
    """Rows of equal text and vector are ordered by id, in whatever order they arrived."""
    ids = [f"r{number:02}" for number in range(33)]  # so many that BLAS sums the last otherwise
    for seed in range(10):
        rows = [_row(row_id, "plum", seed) for row_id in reversed(ids)]
        view = _view(exact_max_bytes, Change("g", 1, (*rows, _row("other", "fig", seed + 99))))
        found = [row_id for row_id in _ids(view.search("plum", _QUERY, 40)) if row_id != "other"]
        assert found == ids


@pytest.mark.parametrize("text", ["", "plum"])
def test_fewer_are_the_first_of_more(text: str) -> None:
    """Whatever the limit, the rows are the first of those of a greater one, ties at its end too."""
    rows = tuple(_row(f"r{place:03}", "plum", seed=place % 40) for place in range(150, 0, -1))
    view = _view(_EXACT, Change("g", 1, rows))
    whole = view.search(text, _QUERY, 150)
    assert _ids(whole) == [
        one.row_id for one in sorted(whole, key=lambda one: (-round(one.score, 6), one.row_id))
    ]
    for limit in range(1, 150, 7):
        few = view.search(text, _QUERY, limit)
        assert _ids(few) == _ids(whole)[:limit]
        assert [one.score for one in few] == [one.score for one in whole[:limit]]


@_BOTH
def test_a_stale_change_does_not_bring_a_group_back(exact_max_bytes: int) -> None:
    """After a group is gone, an older change of it has no effect."""
    view = _view(exact_max_bytes, Change("g", 1, (_row("r", "plum"),)), Change("g", 5, ()))
    view.apply([Change("g", 3, (_row("r", "plum"),))])
    assert view.search("plum", _QUERY, 5) == []


@_BOTH
@pytest.mark.parametrize(
    "vector",
    [b"", b"\0" * 3, b"\0" * 4 * (_DIMENSION + 1), b"\0" * 4 * _DIMENSION]
    + [np.full(_DIMENSION, bad, dtype="<f4").tobytes() for bad in (np.nan, np.inf)],
    ids=["absent", "odd", "long", "zero", "nan", "infinite"],
)
def test_an_unusable_vector_spoils_nothing(exact_max_bytes: int, vector: bytes) -> None:
    """A row with an unusable vector is found by its words, beside good rows, and can go again."""
    rows = (IndexedRow("bad", "plum", vector), _row("good", "fig"))
    view = _view(exact_max_bytes, Change("g", 1, rows))
    assert set(_ids(view.search("plum", _QUERY, 5))) == {"bad", "good"}
    view.apply([Change("g", 2, ())])
    assert view.search("plum fig", _QUERY, 5) == []


@_BOTH
def test_words_and_vectors_both_bring_rows(exact_max_bytes: int) -> None:
    """The row with the word and the row with the vector lead, the row with both leads them."""
    near, far = _QUERY.astype("<f4").tobytes(), (-_QUERY).astype("<f4").tobytes()
    rows = (
        IndexedRow("both", "medlar", near),
        IndexedRow("none", "fig", far),
        IndexedRow("vector", "fig", near),
        IndexedRow("word", "medlar", far),
    )
    found = _view(exact_max_bytes, Change("g", 1, rows)).search("medlars", _QUERY, 4)
    assert _ids(found) == ["both", "vector", "word", "none"]
    assert [one.score for one in found] == pytest.approx([1.0, 0.5, 0.5, 0.0])
    assert found[0].word_score > 0
    assert found[0].vector_score == pytest.approx(1.0)


@_BOTH
def test_the_limit_holds_past_the_usual_depth(exact_max_bytes: int) -> None:
    """A limit above the usual number of candidates still gives so many rows; zero gives none."""
    rows = tuple(_row(f"r{number}", "plum", seed=number) for number in range(400))
    view = _view(exact_max_bytes, Change("g", 1, rows))
    assert len(set(_ids(view.search("plum", _QUERY, 350)))) == 350
    assert view.search("plum", _QUERY, 0) == []


@pytest.mark.parametrize("query", [np.zeros(_DIMENSION), np.ones(_DIMENSION + 1)])
def test_a_query_vector_is_checked(query: Matrix) -> None:
    """A query vector without direction or of another dimension is a ValueError."""
    with pytest.raises(ValueError, match="vector"):
        _view(_EXACT).search("plum", query.astype(np.float32), 5)


@_BOTH
@settings(max_examples=40, deadline=None)
@given(
    changes=_changes(), among=st.sets(st.sampled_from([f"{g}{n}" for g in "abcd" for n in "012"]))
)
def test_a_search_among_some_rows_finds_all_of_them(
    exact_max_bytes: int, changes: list[Change], among: set[str]
) -> None:
    """Confined to ids, a search finds just those the view has, with the scores all rows give."""
    view = _view(exact_max_bytes, *changes)
    of_all = {one.row_id: one for one in view.search("apple pear", _QUERY, 100)}
    found = view.search("apple pear", _QUERY, 100, [*among, "unknown"])
    assert {one.row_id for one in found} == among & of_all.keys()
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        assert one.word_score == of_all[one.row_id].word_score
        assert one.vector_score == pytest.approx(of_all[one.row_id].vector_score, abs=1e-6)


@_BOTH
def test_a_search_among_far_rows_is_exact(exact_max_bytes: int) -> None:
    """Of rows that no search of all would bring, the nearest come in order, none left out."""
    rows = {f"r{number:04}": _row(f"r{number:04}", "plum") for number in range(2_000)}
    view = _view(exact_max_bytes, Change("g", 1, tuple(rows.values())))
    far = sorted(rows, key=lambda row_id: _cosine(rows[row_id]))[:300]
    assert _ids(view.search("", _QUERY, 250, far)) == far[:49:-1]
    assert set(_ids(view.search("plum", None, 300, far))) == set(far)
    assert view.search("plum", _QUERY, 10, []) == []


def test_a_row_that_went_to_another_group_is_found_by_its_id() -> None:
    """Where a row's new group comes before its old one goes, its id still leads to it."""
    view = _view(_EXACT, Change("old", 1, (_row("r", "plum"),)))
    view.apply([Change("new", 2, (_row("r", "plum"),))])
    view.apply([Change("old", 3, ())])
    assert _ids(view.search("plum", _QUERY, 5, ["r"])) == ["r"]


@_BOTH
def test_removed_rows_give_their_memory_back(exact_max_bytes: int) -> None:
    """Emptied groups leave little behind."""
    view = _view(
        exact_max_bytes,
        *(Change(f"g{n}", n + 1, (_row(f"r{n}", f"word{n}"),)) for n in range(500)),
    )
    full = view.nbytes
    view.apply([Change(f"g{n}", n + 501, ()) for n in range(500)])
    view.build(lambda: False)
    assert (len(view), view.nbytes < full / 2) == (0, True)


def test_hnsw_finds_what_exact_search_finds() -> None:
    """On clustered rows, at least 95 % of the ten best of an exact view are found by hnswlib."""
    centres = np.random.default_rng(0).standard_normal((20, _DIMENSION))
    noise = np.random.default_rng(1).standard_normal((1_500, _DIMENSION))
    matrix = (np.repeat(centres, 75, axis=0) + 0.4 * noise).astype("<f4")
    change = Change(
        "g", 1, tuple(IndexedRow(f"r{n}", "", row.tobytes()) for n, row in enumerate(matrix))
    )
    views = [_view(exact_max_bytes, change) for exact_max_bytes in (_EXACT, _HNSW)]

    def overlap(query: Matrix) -> int:
        exact, hnsw = (set(_ids(view.search("", query, 10))) for view in views)
        return len(exact & hnsw)

    assert np.mean([overlap(query) for query in centres.astype(np.float32)]) >= 9.5


@_BOTH
@settings(max_examples=40, deadline=None)
@given(changes=_changes(), more=_changes())
def test_a_view_that_was_dumped_and_loaded_goes_on_the_same(
    exact_max_bytes: int, changes: list[Change], more: list[Change]
) -> None:
    """Loaded, a view is what it was when it was dumped, and follows changes as it would have."""
    view = _view(exact_max_bytes, *changes)
    found, dump = view.search("apple pear", _QUERY, 50), view.dump()
    view.apply(more)
    loaded = View.load(dump, exact_max_bytes)
    assert loaded.search("apple pear", _QUERY, 50) == found
    assert (loaded.applied_seq, loaded.churn) == (max(change.seq for change in changes), 0)
    loaded.apply(more)
    assert loaded.applied_seq == view.applied_seq
    ours, theirs = (one.search("apple pear", _QUERY, 50) for one in (loaded, view))
    assert _ids(ours) == _ids(theirs)
    assert [one.score for one in ours] == pytest.approx([one.score for one in theirs], abs=1e-5)


@_BOTH
def test_what_differs_from_the_rows_is_told(exact_max_bytes: int) -> None:
    """Rows the view lacks, has too many of, has of an older seq or with another vector."""
    groups = {name: Change(name, seq, (_row(name, "fig"),)) for seq, name in enumerate("abcde", 1)}
    bare = Change("bare", 9, (IndexedRow("bare", "fig", b""),))
    view = _view(exact_max_bytes, *groups.values(), bare)
    assert view.flaws([*groups.values(), bare]) == Flaws([], [], [])
    groups["new"] = Change("new", 10, (_row("new", "fig"),))
    groups["a"] = Change("a", 11, ())
    del groups["b"]
    groups["c"] = Change("c", 12, groups["c"].rows)
    groups["d"] = Change("d", 4, (_row("d", "fig", seed=99),))
    bare = Change("bare", 9, (_row("bare", "fig"),))
    flaws = view.flaws([*groups.values(), bare])
    assert flaws == Flaws(missing=["new"], ghost=["a", "b"], stale=["bare", "c", "d"])


def test_views_of_one_language_share_what_splits_texts() -> None:
    """The stemmer's memory of words, some megabytes, is held once, not for each view."""
    assert View(3, "en", 0)._analyzer is View(3, "en", 0)._analyzer is analyzer("en")
    assert analyzer("de") is not analyzer("en")
