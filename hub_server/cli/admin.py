"""``hub admin``: what is done on the machine and never over the wire."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

from hub_server.cli.own_postgres import own_postgres
from hub_server.identity import owner
from hub_server.migrations import migrate
from hub_server.settings import Settings

app = typer.Typer(help="Operators, and keys for tenants that lost theirs.", no_args_is_help=True)


@app.command("create-operator")
def create_operator(name: Annotated[str, typer.Argument(help="Whose key it is.")]) -> None:
    """Make an operator's key, which manages tenants, and print it: it is shown once."""
    if not name.strip():
        _fail("an operator needs a name")
    with _owner_url() as url:
        typer.echo(owner.create_operator(url, name))


@app.command("list-operators")
def list_operators() -> None:
    """Print id, name, time of creation and state of each operator."""
    with _owner_url() as url:
        for operator in owner.operators(url):
            state = "revoked" if operator["revoked_at"] else "valid"
            made = operator["created_at"].isoformat(timespec="seconds")
            typer.echo(f"{operator['operator_id']}  {made}  {state:7}  {operator['name']}")


@app.command("revoke-operator")
def revoke_operator(
    operator_id: Annotated[str, typer.Argument(help="See list-operators.")],
) -> None:
    """End an operator's key; it is refused from the next call on."""
    with _owner_url() as url:
        if not owner.revoke_operator(url, operator_id):
            _fail(f"there is no operator {operator_id}")


@app.command("create-key")
def create_key(
    tenant: Annotated[str, typer.Argument(help="The tenant's name.")] = "default",
) -> None:
    """Make a service key with every scope for a tenant, and print it: it is shown once."""
    with _owner_url() as url:
        key = owner.create_key(url, tenant)
    if key is None:
        _fail(f"there is no tenant {tenant}")
    typer.echo(key)


@contextmanager
def _owner_url() -> Iterator[str]:
    """Yield the URL of who may do all this; the embedded Postgres need not be running."""
    settings = Settings()
    given = settings.owner_url or settings.database_url
    if given is not None:
        yield given.get_secret_value()
        return
    with own_postgres(settings, shared=True) as url:
        migrate(url, settings.server_role)  # it may never have been served
        yield url


def _fail(message: str) -> NoReturn:
    typer.echo(f"hub: {message}", err=True)
    raise SystemExit(1)
