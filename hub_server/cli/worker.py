"""One of several processes that serve one address; ``supervisor`` is its parent.

Standard input brings its orders, and ends when the parent does, however that ends. On standard
output it says that it serves.
"""

import asyncio
import json
import os
import sys
import threading

from hub_server import server
from hub_server.logs import configure_logs
from hub_server.settings import Settings


def orders(address: str, database_url: str) -> bytes:
    """Return what a worker must be told; all else is in the environment."""
    return json.dumps([address, database_url]).encode() + b"\n"


def serve() -> None:
    """Serve by the orders on standard input until SIGTERM."""
    line = sys.stdin.readline()
    if not line:
        return  # the parent is gone already
    threading.Thread(target=_end_with_parent, daemon=True).start()
    address, database_url = json.loads(line)
    settings = Settings(listen=address)
    configure_logs(settings.log_level, worker=os.getpid())
    asyncio.run(_serve(settings, database_url))


def _end_with_parent() -> None:
    """End at once when the parent was killed: whoever starts the hub next must be alone.

    A worker that is cut off breaks no promise; kill -9 of a hub without workers does the same.
    """
    # Not sys.stdin.read, which holds a lock that the end of the interpreter waits for.
    while os.read(0, 1024):
        pass
    os._exit(1)


async def _serve(settings: Settings, database_url: str) -> None:
    stopped = server.stop_signal()
    async with server.serving(settings, database_url) as address:
        server.spare_the_collector()
        print(address, flush=True)
        # The parent reads no more; what a library may print goes to the log.
        os.dup2(2, 1)
        await stopped.wait()
