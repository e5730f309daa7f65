"""``hub serve`` and ``hub migrate``."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer
from pydantic import ValidationError

from hub_server import server
from hub_server.database import as_role
from hub_server.errors import HubError
from hub_server.limits import ContractError
from hub_server.logs import configure_logs
from hub_server.migrations import migrate
from hub_server.preflight import UnfitDatabaseError
from hub_server.settings import Settings

app = typer.Typer(
    help="Cortex Hub: the state of AI assistants as one gRPC service.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command; what an operator can mend is told in one line, not a traceback."""
    try:
        app()
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(("HUB", *map(str, first["loc"]))).upper() if first["loc"] else "settings"
        _fail(f"{name}: {first['msg']}")
    except (UnfitDatabaseError, ContractError, OSError, RuntimeError) as error:
        _fail(str(error))
    except subprocess.SubprocessError:
        _fail("the embedded Postgres did not start: its log is postgres/log in the data directory")
    except HubError as error:
        # The driver's own words, which no caller of the hub sees, are for the operator.
        cause = str(getattr(error.__cause__, "orig", error.message)).splitlines()[0]
        _fail(f"Postgres: {cause}")


@app.command()
def serve() -> None:
    """Serve the hub until SIGTERM or Ctrl-C."""
    settings = Settings()
    configure_logs(settings.log_level)
    for name in Settings.unknown(os.environ):
        typer.echo(f"hub: {name} is no setting of the hub", err=True)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    if settings.database_url is not None:
        asyncio.run(server.run(settings, settings.database_url.get_secret_value()))
        return
    with _own_postgres(settings) as url:
        migrate(url, settings.server_role)
        _end_leases(url)
        asyncio.run(server.run(settings, as_role(url, settings.server_role)))


@app.command("migrate")
def migrate_command() -> None:
    """Bring the database up to date; HUB_OWNER_URL or HUB_DATABASE_URL names it."""
    settings = Settings()
    given = settings.owner_url or settings.database_url
    if given is not None:
        migrate(given.get_secret_value(), settings.server_role)
        return
    with _own_postgres(settings) as url:
        migrate(url, settings.server_role)


def _end_leases(url: str) -> None:
    from hub_server.postgres import end_leases  # noqa: PLC0415 - as below

    end_leases(url)


@contextmanager
def _own_postgres(settings: Settings) -> Iterator[str]:
    """Run the embedded Postgres; it stops however this process is asked to end."""
    # Imported here: with HUB_DATABASE_URL set, the extra `embedded` need not be installed.
    from hub_server.postgres import embedded_postgres, exclusive  # noqa: PLC0415

    # Cut off in the midst of its start Postgres would be left running: the end waits until then.
    asked: list[int] = []
    _on_signals(lambda number, _: asked.append(number))
    with exclusive(settings.data_dir), embedded_postgres(settings.data_dir) as url:
        try:
            _on_signals(lambda *_: sys.exit(0))
            if asked:
                sys.exit(0)
            yield url
        finally:
            # A second signal must not interrupt the stop of Postgres.
            _on_signals(signal.SIG_IGN)


def _on_signals(handler: Callable[[int, object], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _fail(message: str) -> NoReturn:
    typer.echo(f"hub: {message}", err=True)
    raise SystemExit(1)
