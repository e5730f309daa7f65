"""Search finds what people judged relevant, through a whole hub."""

import math
from pathlib import Path

import pytest

from hub_client import AsyncHubClient
from scripts.bench import cranfield
from scripts.bench.cranfield import Abstract, Collection
from tests.support import hub_process

# Three documents on each of four subjects; a query says what its own mean in other words, or in
# the same.
_SUBJECTS = {
    "wings": ("lift of a swept wing", "drag of an aircraft wing", "flutter of thin wings"),
    "bread": ("baking sourdough loaves", "yeast and rising dough", "flour for a crisp crust"),
    "courts": ("a judge's ruling", "appeals before the tribunal", "witnesses under oath"),
    "gardens": ("pruning roses in spring", "watering tomato plants", "compost for vegetable beds"),
}
_QUERIES = {
    "aerodynamics of the wing of an airplane": "wings",
    "how is bread dough made with yeast": "bread",
    "law and judges in a court": "courts",
    "plants and flowers of a gardener": "gardens",
}


def _own() -> Collection:
    abstracts = [
        Abstract(f"{subject}{place}", about, "", f"This text is about {about}, and {about} only.")
        for subject, contents in _SUBJECTS.items()
        for place, about in enumerate(contents)
    ]
    relevant = {
        number: {f"{subject}{place}" for place in range(3)}
        for number, subject in enumerate(_QUERIES.values(), start=1)
    }
    return Collection(abstracts, list(_QUERIES), relevant)


def _collections() -> dict[str, tuple[Collection, float]]:
    """Return collections and the nDCG@10 to reach; Cranfield is not in the repository."""
    found = {"own": (_own(), 0.8)}
    if (cranfield.FOLDER / "cran.all.1400").exists():
        found["cranfield"] = (cranfield.read(cranfield.FOLDER), 0.40)
    return found


_COLLECTIONS = _collections()


# Cranfield takes a minute: `make test ARGS="-m slow"`, and `make bench-cranfield` for both models.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name == "cranfield" else [])
        for name in _COLLECTIONS
    ],
)
async def test_search_ranks_the_relevant_first(name: str, tmp_path: Path) -> None:
    """nDCG@10 of the small model on Cranfield is .40 at least: a row per abstract has .403."""
    collection, least = _COLLECTIONS[name]
    with hub_process(tmp_path / "data", embedding="wordllama", log_level="WARNING") as hub:
        address = hub.start()
        async with AsyncHubClient(address, hub.key) as client:
            library = await cranfield.ingested(client, collection)
            found = await cranfield.rankings(client, library, collection)
    assert library.documents == len(collection.abstracts)
    assert cranfield.mean_ndcg(found, collection.relevant) >= least


def test_ndcg_is_what_it_is_defined_as() -> None:
    """1 for the best order, 0 for nothing relevant, and less the later the relevant stand."""
    assert cranfield.ndcg(["a", "b", "x"], {"a", "b"}) == 1
    assert cranfield.ndcg(["x", "y"], {"a"}) == 0
    assert cranfield.ndcg(["x", "a"], {"a"}) == 1 / math.log2(3)
    assert cranfield.ndcg(["x"] * 10 + ["a"], {"a"}) == 0
