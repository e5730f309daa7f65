"""The ``hub`` command."""

import os

# The hub forks nothing but Postgres' own tools, each followed by exec; gRPC's fork handlers would
# only complain of its threads. Read when gRPC is first imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")

from hub_server.cli.main import main

__all__ = ["main"]
