"""`make bench-tenancy`: what row security, and bringing the tenant to Postgres, cost a statement.

One indexed read of a row, through `hub_server.database` as the server's role, on an embedded
Postgres. All series in turn, several rounds; the last column is the ratio to the series without
row security.
"""

import argparse
import asyncio
import tempfile
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psycopg
import sqlalchemy as sa

from hub_server.caller import Caller
from hub_server.database import Database, as_role
from hub_server.identity.models import users
from hub_server.migrations import migrate
from hub_server.postgres import embedded_postgres
from hub_server.settings import Settings
from scripts.bench.figures import machine, table

ROWS: Final = 1000  # of each tenant


@dataclass(frozen=True)
class Series:
    """How one series reaches Postgres, and for which tenants in turn."""

    name: str
    database: Database
    tenants: Sequence[str]
    secured: bool = True


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each series in a round")
    options = parser.parse_args()
    role = Settings().server_role
    with (
        tempfile.TemporaryDirectory(prefix="hub-bench-") as folder,
        embedded_postgres(Path(folder)) as url,
    ):
        migrate(url, role)
        tenants = {tenant: fill(url, tenant) for tenant in (str(uuid.uuid4()), str(uuid.uuid4()))}
        for in_flight in (64, 1):
            rounds = asyncio.run(measure(url, role, tenants, in_flight, options))
            print(f"\n{in_flight} in flight, {options.rounds} rounds: median (range), ratio")
            print(table(rounds, next(iter(rounds))))
        print(f"\n{machine()}")


def fill(url: str, tenant: str) -> list[str]:
    """Make a tenant with users; return their ids."""
    ids = [str(uuid.uuid4()) for _ in range(ROWS)]
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO tenants VALUES (%s, %s)", (tenant, tenant))
        connection.cursor().executemany(
            "INSERT INTO users (tenant_id, user_id, email, email_key) VALUES (%s, %s, %s, %s)",
            [(tenant, user, user, user) for user in ids],
        )
    return ids


async def measure(
    url: str,
    role: str,
    tenants: dict[str, list[str]],
    in_flight: int,
    options: argparse.Namespace,
) -> dict[str, list[float]]:
    """Return the rates of every series, one of each round."""
    server = as_role(url, role)
    carried = Database(server, role=role, pool_size=10)
    local = Database(server, role=role, pool_size=10, pooler=True)
    one, both = list(tenants)[:1], list(tenants)
    series = [
        Series("no row security, tenant carried", carried, one, secured=False),
        Series("row security, tenant carried", carried, one),
        Series("row security, two tenants in turn", carried, both),
        Series("row security, tenant set in each transaction", local, one),
    ]
    rounds: dict[str, list[float]] = {one.name: [] for one in series}
    for _ in range(options.rounds):
        for current in series:
            secure(url, on=current.secured)
            rounds[current.name].append(await rate(current, tenants, in_flight, options.seconds))
    await carried.close()
    await local.close()
    return rounds


def secure(url: str, *, on: bool) -> None:
    """Switch row security of the table that is read."""
    with psycopg.connect(url) as connection:
        connection.execute(f"ALTER TABLE users {'ENABLE' if on else 'DISABLE'} ROW LEVEL SECURITY")


async def rate(
    series: Series, tenants: dict[str, list[str]], in_flight: int, seconds: float
) -> float:
    """Return reads a second."""
    begin = time.perf_counter()
    done = 0

    async def reader(place: int) -> None:
        nonlocal done
        while time.perf_counter() - begin < seconds:
            tenant = series.tenants[done % len(series.tenants)]
            user_id = tenants[tenant][(place + done) % ROWS]
            async with series.database.statement(Caller.hub(tenant)) as connection:
                query = sa.select(users.c.email).where(
                    users.c.tenant_id == tenant, users.c.user_id == user_id
                )
                (await connection.execute(query)).scalar_one()  # raises unless the row is seen
            done += 1

    await asyncio.gather(*(reader(place) for place in range(in_flight)))
    return done / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
