"""What the owner of the database does for operators: never reached by a call."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hub_server.database import owner_transaction
from hub_server.identity.scopes import EVERYTHING
from hub_server.identity.secrets import OPERATOR_KEY, Secret
from hub_server.identity.system_repository import OwnerRepository
from hub_server.ids import new_id
from hub_server.rows import Row


def create_operator(url: str, name: str) -> str:
    """Make an operator; return the key, which is kept nowhere."""
    secret = Secret.new(OPERATOR_KEY)
    with _repository(url) as repository:
        repository.add_operator(name, secret.hash)
    return secret.text


def operators(url: str) -> Sequence[Row]:
    """Return all operators, newest first."""
    with _repository(url) as repository:
        return repository.operators()


def revoke_operator(url: str, operator_id: str) -> bool:
    """End an operator's key; tell whether there is such an operator."""
    with _repository(url) as repository:
        return repository.revoke_operator(operator_id)


def create_key(url: str, tenant: str) -> str | None:
    """Make a service key with every scope for a tenant; None when there is no such tenant."""
    key_id = new_id()
    secret = Secret.service_key(key_id)
    with _repository(url) as repository:
        done = repository.add_key(tenant, key_id, secret.hash, EVERYTHING)
    return secret.text if done else None


@contextmanager
def _repository(url: str) -> Iterator[OwnerRepository]:
    with owner_transaction(url) as connection:
        yield OwnerRepository(connection)
