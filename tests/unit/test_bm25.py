"""The word index against the package bm25s."""

from collections.abc import Sequence
from pathlib import Path

import bm25s
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from hub_server.retrieval.bm25 import Bm25Index
from hub_server.retrieval.text import analyzer
from scripts.bench import cranfield

_TERMS = st.lists(st.sampled_from("abcdefgh"), max_size=12)


def _reference(rows: dict[int, list[str]], query: Sequence[str]) -> dict[int, float]:
    """Return what bm25s, built afresh over `rows`, gives every row that has a score."""
    known = {term for terms in rows.values() for term in terms}
    asked = [term for term in query if term in known]
    if not asked:
        return {}
    reference = bm25s.BM25(method="lucene")
    reference.index(list(rows.values()), show_progress=False)
    scores = reference.get_scores(asked)
    return {label: float(score) for label, score in zip(rows, scores, strict=True) if score > 0}


def _scores(index: Bm25Index, query: Sequence[str], k: int = 1_000) -> dict[int, float]:
    labels, scores = index.top(query, k)
    return dict(zip(labels.tolist(), scores.tolist(), strict=True))


def _build(rows: dict[int, list[str]]) -> Bm25Index:
    index = Bm25Index()
    for label, terms in rows.items():
        index.add(label, terms)
    return index


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_scores_are_those_of_bm25s_over_the_live_rows(data: st.DataObject) -> None:
    """After any adds and removes, scores equal a fresh bm25s over the rows that are left."""
    index = Bm25Index()
    rows: dict[int, list[str]] = {}
    for label in range(data.draw(st.integers(1, 30))):
        if data.draw(st.booleans()) and rows:
            gone = data.draw(st.sampled_from(sorted(rows)))
            index.remove(gone)
            del rows[gone]
        rows[label] = data.draw(_TERMS)
        index.add(label, rows[label])
    query = data.draw(st.lists(st.sampled_from("abcdefghij"), max_size=6))
    assert len(index) == len(rows)
    assert _scores(index, query) == pytest.approx(_reference(rows, query), abs=1e-4)


def test_scores_are_those_of_bm25s_on_longer_rows() -> None:
    """Scores equal bm25s on rows of natural lengths with a skewed vocabulary."""
    random = np.random.default_rng(1)
    rows = {
        label: [f"t{n}" for n in random.zipf(1.3, random.integers(1, 300)) if n < 2_000]
        for label in range(300)
    }
    index = _build(rows)
    for label in range(0, 300, 3):
        index.remove(label)
        del rows[label]
    for query in (["t1"], ["t1", "t2", "t2", "t77"], [f"t{n}" for n in range(1, 60)]):
        assert _scores(index, query) == pytest.approx(_reference(rows, query), abs=1e-4)


def _collections() -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """Return texts and queries, by name; Cranfield is not in the repository."""
    license_text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    paragraphs = [part for part in license_text.split("\n\n") if part.strip()]
    found: dict[str, tuple[Sequence[str], Sequence[str]]] = {}
    found["license"] = (paragraphs, license_text.splitlines())
    if (cranfield.FOLDER / "cran.all.1400").exists():
        read = cranfield.read(cranfield.FOLDER)
        found["cranfield"] = ([f"{one.title}\n{one.text}" for one in read.abstracts], read.queries)
    return found


_COLLECTIONS = _collections()


@pytest.mark.parametrize("name", _COLLECTIONS)
def test_scores_are_those_of_bm25s_on_texts(name: str) -> None:
    """Each text has the score for each query that bm25s gives it, of the same terms."""
    texts, queries = _COLLECTIONS[name]
    rules = analyzer("en")
    rows = [rules.terms(text) for text in texts]
    index = _build(dict(enumerate(rows)))
    reference = bm25s.BM25(method="lucene")
    reference.index(rows, show_progress=False)
    for query in queries:
        terms = rules.query_terms(query)
        labels, scores = index.top(terms, len(rows))
        ours = np.zeros(len(rows))
        ours[labels] = scores
        known = [term for term in terms if term in reference.vocab_dict]
        theirs = reference.get_scores(known) if known else np.zeros(len(rows))
        assert np.abs(ours - theirs).max() <= 1e-4


def test_best_come_first_and_ties_by_label() -> None:
    """Results descend by score; of equal scores the lower label comes first, at the cut too."""
    index = _build({9: ["a"], 3: ["a"], 5: ["a"], 1: ["a", "a", "b"], 7: ["b"]})
    labels, scores = index.top(["a"], 10)
    assert sorted(scores.tolist(), reverse=True) == scores.tolist()
    assert [label for label in labels.tolist() if label != 1] == [3, 5, 9]
    equal = _build({9: ["a"], 3: ["a"], 5: ["a"]})
    assert equal.top(["a"], 2)[0].tolist() == [3, 5]


def test_removed_rows_are_not_found_and_give_their_memory_back() -> None:
    """A removed row is never returned, and its postings are gone once a fifth is dead."""
    index = _build({label: ["common", f"own{label}"] for label in range(100)})
    full = index.nbytes
    for label in range(90):
        index.remove(label)
    assert set(_scores(index, ["common"])) == set(range(90, 100))
    assert _scores(index, ["own5"]) == {}
    assert index.nbytes < full / 5


def test_one_large_dead_row_is_compacted_away() -> None:
    """Dead postings are what counts, not dead rows."""
    index = _build({label: ["a"] for label in range(100)} | {100: [f"t{n}" for n in range(5_000)]})
    full = index.nbytes
    index.remove(100)
    assert index.nbytes < full / 10


@pytest.mark.parametrize("query", [[], ["unknown"]])
def test_a_query_without_known_terms_finds_nothing(query: list[str]) -> None:
    """No known term, no result; the same in an empty index."""
    assert _scores(_build({1: ["a"]}), query) == {}
    assert _scores(Bm25Index(), query) == {}
    assert _scores(_build({1: []}), query) == {}


def test_labels_are_checked() -> None:
    """A live label cannot be added again, nor an unknown one removed."""
    index = _build({1: ["a"]})
    with pytest.raises(ValueError, match="label 1"):
        index.add(1, ["b"])
    with pytest.raises(KeyError):
        index.remove(2)
    assert _scores(index, ["a", "b"]).keys() == {1}


@pytest.mark.parametrize("k", [0, -1])
def test_asking_for_none_gives_none(k: int) -> None:
    """A k of zero or less is an empty answer, not an error."""
    assert _scores(_build({1: ["a"]}), ["a"], k) == {}


def test_a_loaded_index_counts_its_live_rows_only() -> None:
    """Dumped with dead rows in it, an index scores and goes on as the one it was dumped from."""
    index = Bm25Index()
    for label in range(20):
        index.add(label, ["plum"] * (label % 3) + ["fig"] * (label % 5) + ["pear"] * 9)
    index.remove(8)
    index.remove(19)
    loaded = Bm25Index.load(index.dump())
    for _ in range(5):
        for ours, theirs in zip(
            loaded.top(["plum", "fig"], 20), index.top(["plum", "fig"], 20), strict=True
        ):
            assert ours.tolist() == theirs.tolist()
        assert (len(loaded), loaded.nbytes) == (len(index), index.nbytes)
        gone = int(index.top(["fig"], 1)[0][0])
        for one in (index, loaded):
            one.remove(gone)
            one.add(100 + gone, ["plum", "quince"])
