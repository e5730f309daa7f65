"""What the benchmarks share: the machine, medians and spreads, percentiles."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence


def machine() -> str:
    """Return what the figures were measured on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {platform.machine()}, Python {platform.python_version()}"


def spread(values: Sequence[float]) -> str:
    """Return median and range of the rounds, as calls a second."""
    return f"{statistics.median(values):8,.0f}/s  ({min(values):,.0f} to {max(values):,.0f})"


def percentile(values: Sequence[float], part: float) -> float:
    """Return the value below which `part` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def table(rounds: Mapping[str, Sequence[float]], reference: str) -> str:
    """Return a line for each series: rate, spread, and its median ratio to the reference's.

    The ratio is the median of the ratios of each round, in which both were measured side by side.
    """
    lines = []
    for name, values in rounds.items():
        ratios = [mine / its for mine, its in zip(values, rounds[reference], strict=True)]
        lines.append(f"{name:42} {spread(values):32} {statistics.median(ratios):6.2f}")
    return "\n".join(lines)
