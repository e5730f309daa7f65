"""Group commit: who waits together is flushed together, and each gets an answer of its own."""

import asyncio
from collections.abc import Sequence

import pytest

from hub_server.batching import Batcher
from hub_server.errors import HubError, Reason


class _Flush:
    """Stands for the statement: doubles numbers, fails on what it is told, and can be held up."""

    def __init__(self, **poison: Exception) -> None:
        self.groups: list[list[int]] = []
        self.poison = {int(name.lstrip("n")): error for name, error in poison.items()}
        self.begun, self.gate = asyncio.Event(), asyncio.Event()
        self.gate.set()

    async def __call__(self, items: Sequence[int]) -> Sequence[int]:
        self.groups.append(list(items))
        self.begun.set()
        await self.gate.wait()
        for item in items:
            if item in self.poison:
                raise self.poison[item]
        return [2 * item for item in items]


def _batcher(flush: _Flush, *, items: int = 100, waiting: int = 100) -> Batcher[int, int]:
    return Batcher(flush, most_items=items, most_waiting=waiting)


async def _all(batcher: Batcher[int, int], *items: int) -> list[int | BaseException]:
    return await asyncio.gather(*map(batcher.submit, items), return_exceptions=True)


async def test_an_idle_batcher_flushes_at_once() -> None:
    """A call that comes alone waits for nobody."""
    flush = _Flush()
    assert await _batcher(flush).submit(1) == 2
    assert flush.groups == [[1]]


async def test_who_waits_together_is_flushed_together() -> None:
    """What arrives during a flush makes the next group, in order of arrival, and in full."""
    flush = _Flush()
    batcher = _batcher(flush)
    flush.gate.clear()
    first = asyncio.create_task(batcher.submit(0))
    await flush.begun.wait()
    rest = [asyncio.create_task(batcher.submit(item)) for item in range(1, 50)]
    await asyncio.sleep(0)  # lets them begin to wait
    flush.gate.set()
    assert await asyncio.gather(first, *rest) == [2 * item for item in range(50)]
    assert flush.groups == [[0], list(range(1, 50))]
    assert batcher.idle


async def test_a_group_has_a_greatest_size() -> None:
    """A statement never grows beyond it, however many wait."""
    flush = _Flush()
    assert await _all(_batcher(flush, items=3), *range(8)) == [2 * item for item in range(8)]
    assert flush.groups == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_one_group_is_flushed_at_a_time() -> None:
    """Groups never overtake each other: the order of arrival is the order of the statements."""
    running = most = 0

    async def flush(items: Sequence[int]) -> Sequence[int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return items

    batcher = Batcher(flush, most_items=2, most_waiting=100)
    await asyncio.gather(*(batcher.submit(item) for item in range(20)))
    assert most == 1


@pytest.mark.parametrize("most_groups", [1, 2, 3])
async def test_who_asks_again_at_once_is_answered(most_groups: int) -> None:
    """No call falls between a worker that is just ending and the next one."""
    flush = _Flush()
    batcher = Batcher(flush, most_items=4, most_waiting=100, most_groups=most_groups)

    async def ask(first: int) -> list[int]:
        return [await batcher.submit(item) for item in range(first, first + 5)]

    answers = await asyncio.gather(*(ask(first) for first in range(10)))
    assert answers == [[2 * item for item in range(first, first + 5)] for first in range(10)]


async def test_a_group_that_waits_does_not_hold_up_a_second_one() -> None:
    """Where two groups may be under way, the items behind a stuck one are answered, in time."""
    stuck, begun = asyncio.Event(), asyncio.Event()

    async def flush(items: Sequence[int]) -> Sequence[int]:
        if 0 in items:
            begun.set()
            await stuck.wait()
        return items

    batcher = Batcher(flush, most_items=1, most_waiting=100, most_groups=2)
    first = asyncio.create_task(batcher.submit(0))
    await begun.wait()
    assert await asyncio.gather(*(batcher.submit(item) for item in (1, 2, 3))) == [1, 2, 3]
    assert not first.done()
    stuck.set()
    assert await first == 0


async def test_a_group_that_is_quick_is_waited_for() -> None:
    """Two groups may be under way, but a second one begins only when the first is held up."""
    flush = _Flush()
    flush.gate.clear()
    batcher = Batcher(flush, most_items=100, most_waiting=100, most_groups=2)
    tasks = [asyncio.create_task(batcher.submit(0))]
    await flush.begun.wait()
    tasks += [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
    for _ in range(10):
        await asyncio.sleep(0)
    assert flush.groups == [[0]]
    flush.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4]
    assert flush.groups == [[0], [1, 2]]


async def test_a_group_ends_when_it_is_heavy() -> None:
    """A group weighs no more than it may, but for an item that alone weighs more."""
    groups: list[list[int]] = []

    async def flush(items: Sequence[int]) -> Sequence[int]:
        groups.append(list(items))
        await asyncio.sleep(0)
        return items

    batcher = Batcher(
        flush, most_items=100, most_waiting=100, weigh=lambda item: item, most_weight=10
    )
    await asyncio.gather(*(batcher.submit(item) for item in (5, 5, 5, 30, 1, 9, 1)))
    assert all(sum(group) <= 10 or len(group) == 1 for group in groups), groups
    assert [item for group in groups for item in group] == [5, 5, 5, 30, 1, 9, 1]


async def test_a_full_queue_refuses_at_once() -> None:
    """What does not fit is OVERLOADED; what waits is still answered."""
    flush = _Flush()
    batcher = _batcher(flush, waiting=2)
    flush.gate.clear()
    first = asyncio.create_task(batcher.submit(0))
    await flush.begun.wait()
    waiting = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        with pytest.raises(HubError) as caught:
            await batcher.submit(3)
    assert caught.value.reason == Reason.REASON_OVERLOADED
    flush.gate.set()
    assert await asyncio.gather(first, *waiting) == [0, 2, 4]


async def test_an_item_fails_by_its_own_fault_only() -> None:
    """One item that Postgres refuses is refused; its group is flushed again one by one."""
    fault = HubError(Reason.REASON_INTERNAL)
    flush = _Flush(n2=fault)
    assert await _all(_batcher(flush), 1, 2, 3) == [2, fault, 6]
    assert flush.groups == [[1, 2, 3], [1], [2], [3]]


async def test_a_group_that_cannot_be_done_is_not_tried_item_by_item() -> None:
    """With Postgres away, each of a hundred items would wait in vain once more."""
    flush = _Flush(n2=HubError(Reason.REASON_UNAVAILABLE))
    for outcome in await _all(_batcher(flush), 1, 2, 3):
        assert isinstance(outcome, HubError)
        assert outcome.reason == Reason.REASON_UNAVAILABLE
    assert flush.groups == [[1, 2, 3]]


async def test_a_fault_of_the_hub_is_no_outage() -> None:
    """An unforeseen error is INTERNAL with its cause; the group is not tried again, others are."""
    fault = ValueError("a fault")
    flush = _Flush(n2=fault)
    *group, last = await _all(_batcher(flush, items=2), 1, 2, 3)
    for outcome in group:
        assert isinstance(outcome, HubError)
        assert (outcome.reason, outcome.__cause__) == (Reason.REASON_INTERNAL, fault)
    assert last == 6
    assert flush.groups == [[1, 2], [3]]


@pytest.mark.parametrize("count", [0, 1, 3])
async def test_a_statement_that_answers_for_other_items_answers_nobody(count: int) -> None:
    """Should answers and items not match, all are refused: nobody gets another's, or waits on."""

    async def flush(_: Sequence[int]) -> Sequence[int]:
        return [0] * count

    batcher: Batcher[int, int] = Batcher(flush, most_items=9, most_waiting=9)
    async with asyncio.timeout(5):
        outcomes = await _all(batcher, 1, 2)
    for outcome in outcomes:
        assert isinstance(outcome, HubError)
        assert outcome.reason == Reason.REASON_INTERNAL


async def test_who_goes_away_takes_nobody_along() -> None:
    """A cancelled caller's item is flushed with its group; the others are answered."""
    flush = _Flush()
    batcher = _batcher(flush)
    flush.gate.clear()
    first = asyncio.create_task(batcher.submit(0))
    await flush.begun.wait()
    gone, stays = (asyncio.create_task(batcher.submit(item)) for item in (1, 2))
    await asyncio.sleep(0)
    gone.cancel()
    flush.gate.set()
    assert tuple(await asyncio.gather(first, stays)) == (0, 4)
    assert flush.groups == [[0], [1, 2]]


async def test_a_flush_that_is_cancelled_leaves_nobody_waiting() -> None:
    """Whether its items were written is unknown: they and all that wait are UNAVAILABLE."""
    flush = _Flush()
    batcher = _batcher(flush)
    flush.gate.clear()
    first = asyncio.create_task(batcher.submit(0))
    await flush.begun.wait()
    second = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0)
    (worker,) = batcher._workers
    worker.cancel()
    for outcome in await asyncio.gather(first, second, return_exceptions=True):
        assert isinstance(outcome, HubError)
        assert outcome.reason == Reason.REASON_UNAVAILABLE
    flush.gate.set()
    assert await batcher.submit(3) == 6
