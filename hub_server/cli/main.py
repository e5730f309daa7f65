"""``hub serve``, ``hub migrate`` and ``hub admin``."""

import asyncio
import os
import subprocess
from typing import NoReturn

import typer
from pydantic import ValidationError

from hub_server import server
from hub_server.cli import admin, supervisor, worker
from hub_server.cli.own_postgres import end_leases, own_postgres
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
app.add_typer(admin.app, name="admin")


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
    run = server.run if settings.workers == 1 else supervisor.run
    if settings.database_url is not None:
        asyncio.run(run(settings, settings.database_url.get_secret_value()))
        return
    with own_postgres(settings) as url:
        migrate(url, settings.server_role)
        end_leases(url)
        asyncio.run(run(settings, as_role(url, settings.server_role)))


@app.command("worker", hidden=True)
def worker_command() -> None:
    """Serve as one of HUB_WORKERS processes; `hub serve` starts it, and nobody else."""
    worker.serve()


@app.command("migrate")
def migrate_command() -> None:
    """Bring the database up to date; HUB_OWNER_URL or HUB_DATABASE_URL names it."""
    settings = Settings()
    given = settings.owner_url or settings.database_url
    if given is not None:
        migrate(given.get_secret_value(), settings.server_role)
        return
    with own_postgres(settings) as url:
        migrate(url, settings.server_role)


def _fail(message: str) -> NoReturn:
    typer.echo(f"hub: {message}", err=True)
    raise SystemExit(1)
