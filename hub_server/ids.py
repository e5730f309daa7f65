"""Ids: UUIDv7 strings, so that rows made one after another lie beside each other in indexes."""

import uuid_utils


def new_id() -> str:
    """Return a new UUIDv7 in canonical form, 36 characters."""
    return str(uuid_utils.uuid7())
