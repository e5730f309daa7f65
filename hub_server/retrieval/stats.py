"""What is told of views: to those who look after a hub, not to those who search."""

import datetime as dt
from dataclasses import dataclass

from hub_server.retrieval.view import Flaws

__all__ = ["Check", "Stats", "Totals"]


@dataclass(frozen=True, slots=True)
class Totals:
    """All views of a process."""

    views: int
    nbytes: int
    budget: int
    """Bytes above which those unused for longest are dropped."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What there is to know of a view in memory."""

    engine: str
    """How vectors are searched: exact | hnswlib."""
    rows: int
    in_graph: int
    """Rows whose vectors a graph searches; the others are searched exactly. 0 = no graph."""
    dead: int
    """Vectors that were removed and still take memory."""
    nbytes: int
    applied_seq: int
    is_at_work: bool
    """Whether a graph is being built or a snapshot written."""
    built_at: dt.datetime | None
    """When a graph was last brought up to date; None = not by this process."""
    saved_at: dt.datetime | None
    """When a snapshot was last written; None = not by this process."""


@dataclass(frozen=True, slots=True)
class Check:
    """What a comparison of a view with the rows came to."""

    rows: int
    """Rows that are to be found."""
    flaws: Flaws
    recall: float
    """Of ten nearest, the share that a search by vectors finds; 1.0 where it is exact."""
