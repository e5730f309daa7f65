"""The port behind which spaces are searched: `Views` of this process, or an engine of many."""

from collections.abc import Sequence
from typing import Protocol

from hub_server.retrieval.matrix import Matrix
from hub_server.retrieval.stats import Check, Stats, Totals
from hub_server.retrieval.view import Candidate
from hub_server.retrieval.views import Pull, Space

__all__ = ["Index"]


class Index(Protocol):
    """Follows the rows in Postgres, proposes what fits a query, and holds nothing that they lack.

    One suite of tests holds every engine to it: tests/integration/test_index_conformance.py.
    """

    async def search(  # noqa: PLR0913 - what is searched and what is asked, all by name
        self,
        space: Space,
        *,
        dimension: int,
        language: str,
        last_seq: int,
        pull: Pull,
        query_text: str,
        query_vector: Matrix | None,
        limit: int,
        among: Sequence[str] | None = None,
    ) -> list[Candidate]:
        """Follow the rows up to `last_seq`, then return the `limit` best; see Views.search."""

    async def check(
        self, space: Space, *, dimension: int, language: str, last_seq: int, pull: Pull
    ) -> Check:
        """Compare what is held of a space with all its rows, and measure its recall."""

    async def stats(self, space: Space) -> Stats | None:
        """Return what there is to know of a space; None = nothing is held of it."""

    async def snapshot_bytes(self, space: Space) -> int:
        """Return the size of the snapshot of a space; 0 = there is none."""

    @property
    def totals(self) -> Totals:
        """What this process holds in memory of all spaces."""

    async def rebuild(
        self, space: Space, *, dimension: int, language: str, last_seq: int, pull: Pull
    ) -> None:
        """Make what is held of a space anew from its rows. No search beside it misses any."""

    async def forget(self, space: Space) -> int:
        """Remove all that is held of a tenant's user's kind, of whatever model, files too.

        Returns how many views and files this process removed.
        """

    async def owners(self) -> set[tuple[str, str]]:
        """Return the tenants' users of whom this process holds something, in files or memory."""

    async def removed(self, space: Space, seq: int) -> None:
        """Keep nothing in files of what was removed from a tenant's user's kind up to `seq`."""

    async def settled(self) -> None:
        """Wait until nothing is at work in the background."""

    async def close(self) -> None:
        """End what is at work, and the threads."""
