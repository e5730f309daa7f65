"""`make bench-login`: whether time tells who exists, and what a flood of logins costs others.

The first part logs in with a known, an unknown and a disabled email by turns, always with a wrong
password, and prints the area under the ROC curve (AUC) of telling the known from the others by
time: 0.5 is no better than a coin. The second part appends messages with and without a flood of
logins beside them, by turns, and prints p50 and p99 of both.
"""

import argparse
import asyncio
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from hub_client import AsyncHubClient
from hub_client.errors import HubError, LoginFailedError
from hub_client.v1 import (
    AppendMessageRequest,
    CreateSessionRequest,
    CreateUserRequest,
    DeactivateUserRequest,
    LoginRequest,
    Role,
)
from scripts.bench.figures import machine, percentile
from scripts.hub_process import StartError, running_hub

PASSWORD: Final = "a correct horse"  # noqa: S105 - made up
FLOOD: Final = 100  # logins a second, some 30 times what one processor can hash
WRITERS: Final = 4
_SPAWN: Final = multiprocessing.get_context("spawn")


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--logins", type=int, default=300, help="of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each part of a round")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000)
    options = parser.parse_args()
    print(f"{machine()}, seed {options.seed}")
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
            # The throttle would end the first part after ten logins.
            running_hub(Path(folder) / "data", login_attempts="1000000") as (address, key),
        ):
            asyncio.run(tell_apart(address, key, options.logins, random.Random(options.seed)))  # noqa: S311
            asyncio.run(beside_a_flood(address, key, options.rounds, options.seconds))
    except StartError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def tell_apart(address: str, key: str, count: int, chance: random.Random) -> None:
    """Print how well time tells a known email from an unknown or a disabled one."""
    async with AsyncHubClient(address, key) as client:
        await new_user(client, "known@example.org")
        disabled = await new_user(client, "disabled@example.org")
        await client.identity.deactivate_user(DeactivateUserRequest(user_id=disabled))
        emails = ("known@example.org", "unknown@example.org", "disabled@example.org")
        times: dict[str, list[float]] = {email: [] for email in emails}
        for _ in range(count):
            for email in chance.sample(emails, len(emails)):
                times[email].append(await seconds_of_login(client, email))
    known = times[emails[0]]
    print(f"\n{count} logins of each kind, by turns; AUC against a known email, wrong password")
    for email in emails:
        middle = statistics.median(times[email]) * 1000
        print(f"  {email:22} median {middle:6.1f} ms  AUC {auc(known, times[email]):.3f}")


async def new_user(client: AsyncHubClient, email: str) -> str:
    """Create a user with a password; return the id."""
    request = CreateUserRequest(email=email, password=PASSWORD)
    return (await client.identity.create_user(request)).user.user_id


async def seconds_of_login(client: AsyncHubClient, email: str) -> float:
    """Return how long a login with a wrong password takes."""
    begin = time.perf_counter()
    with suppress(LoginFailedError):
        await client.identity.login(LoginRequest(email=email, password="a wrong horse"))  # noqa: S106
    return time.perf_counter() - begin


def auc(ones: Sequence[float], others: Sequence[float]) -> float:
    """Return how often one of these is less than one of the others, ties counting half."""
    wins = sum((one < other) + (one == other) / 2 for one in ones for other in others)
    return wins / (len(ones) * len(others))


async def beside_a_flood(address: str, key: str, rounds: int, seconds: float) -> None:
    """Print p50 and p99 of appends by themselves and beside a flood of logins."""
    quiet: list[list[float]] = []
    flooded: list[list[float]] = []
    async with AsyncHubClient(address, key) as client:
        user_id = await new_user(client, "writer@example.org")
        start = CreateSessionRequest(user_id=user_id)
        sessions = [
            (await client.chat.create_session(start)).session.session_id for _ in range(WRITERS)
        ]
        for _ in range(rounds):
            quiet.append(await append_times(client, sessions, seconds))
            with flood(address, key):
                flooded.append(await append_times(client, sessions, seconds))
    print(f"\nAppendMessage, {WRITERS} in flight, median of {rounds} rounds (range)")
    for name, times in (("alone", quiet), (f"beside {FLOOD} logins a second", flooded)):
        print(f"  {name:28} p50 {spread(times, 0.5)}  p99 {spread(times, 0.99)}")
    ratios = [
        percentile(with_flood, 0.99) / percentile(without, 0.99)
        for with_flood, without in zip(flooded, quiet, strict=True)
    ]
    print(f"  p99 with / without: {statistics.median(ratios):.2f}")


def spread(rounds: Sequence[Sequence[float]], part: float) -> str:
    """Return median and range of a percentile over the rounds, in milliseconds."""
    found = sorted(percentile(times, part) * 1000 for times in rounds)
    return f"{statistics.median(found):6.1f} ms ({found[0]:.1f} to {found[-1]:.1f})"


async def append_times(
    client: AsyncHubClient, sessions: Sequence[str], seconds: float
) -> list[float]:
    """Append to each session, one message after the other, for so long; return the times."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def write(session_id: str) -> None:
        request = AppendMessageRequest(
            session_id=session_id, role=Role.ROLE_USER, content="How is the weather today?"
        )
        while (begin := time.perf_counter()) < end:
            await client.chat.append_message(request)
            times.append(time.perf_counter() - begin)

    await asyncio.gather(*map(write, sessions))
    return times


@contextmanager
def flood(address: str, key: str) -> Iterator[None]:
    """Log in at a steady rate, from a process of its own, until the block ends."""
    process = _SPAWN.Process(target=_flood, args=(address, key), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _flood(address: str, key: str) -> None:
    asyncio.run(_attack(address, key))


async def _attack(address: str, key: str) -> None:
    async def log_in(number: int) -> None:
        email = f"victim{number % 50}@example.org"
        with suppress(HubError):
            await client.identity.login(LoginRequest(email=email, password="a wrong horse"))  # noqa: S106

    async with AsyncHubClient(address, key) as client, asyncio.TaskGroup() as tasks:
        begin, number = time.perf_counter(), 0
        while True:
            tasks.create_task(log_in(number))
            number += 1
            await asyncio.sleep(max(0.0, begin + number / FLOOD - time.perf_counter()))


if __name__ == "__main__":
    sys.exit(main())
