"""What exports hold is held to the tables: nothing of a user's is forgotten by accident."""

import pytest

from hub_client.v1 import ExportRecord
from hub_server import server  # noqa: F401 - it knows all tables
from hub_server.database import metadata
from hub_server.transfer.models import BY_NAME, COMMON, KINDS, LEFT_OUT, Kind


def test_every_table_of_a_tenant_is_exported_or_left_out_for_a_reason() -> None:
    """Who adds a table decides whether users take its rows along."""
    tables = {table.name for table in metadata.tables.values() if "tenant_id" in table.c}
    exported = {kind.table.name for kind in KINDS}
    assert exported | LEFT_OUT.keys() == tables
    assert not exported & LEFT_OUT.keys()
    assert all(LEFT_OUT.values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_column_is_told_or_left_out_for_a_reason(kind: Kind) -> None:
    """A record has a field for each column, of the same name."""
    record = ExportRecord.DESCRIPTOR.fields_by_name[kind.name].message_type
    assert record is not None
    assert set(record.fields_by_name) == {*kind.columns, *kind.computed}
    columns = {column.name for column in kind.table.c}
    assert kind.left_out.keys() <= columns
    assert columns == {*kind.columns, *kind.left_out} | (COMMON & columns)


def test_every_record_tells_of_a_table() -> None:
    """A kind that no table stands behind would be lost in an import."""
    (oneof,) = ExportRecord.DESCRIPTOR.oneofs
    assert {field.name for field in oneof.fields} == {*BY_NAME, "summary"}
