"""`hub serve` as a process, for the programs of this folder."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

START_SECONDS: Final = 120
_COMMAND: Final = [sys.executable, "-c", "from hub_server.cli import main; main()", "serve"]


class StartError(Exception):
    """The hub did not start; the message says what it said last."""


@contextmanager
def running_hub(data: Path, **settings: str) -> Iterator[tuple[str, str]]:
    """Run a hub on its own Postgres over a folder; yield its address and service key.

    `settings` are HUB_* variables, without the prefix and in any case. The hub is stopped at the
    end, whatever happens. Raises StartError.
    """
    environment = {name: text for name, text in os.environ.items() if name != "HUB_DATABASE_URL"}
    environment |= {"HUB_DATA_DIR": str(data), "HUB_LISTEN": "127.0.0.1:0"}
    environment |= {f"HUB_{name.upper()}": text for name, text in settings.items()}
    data.mkdir(exist_ok=True)
    with (data / "hub.log").open("a") as log:
        hub = subprocess.Popen(_COMMAND, env=environment, stdout=log, stderr=log)
    try:
        yield _address(hub, data), (data / "service.key").read_text()
    finally:
        hub.terminate()
        hub.wait()


def _address(hub: subprocess.Popen[bytes], data: Path) -> str:
    """Return the address once the hub has written it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and hub.poll() is None:
        if (data / "address").exists() and (address := (data / "address").read_text()):
            return address
        time.sleep(0.05)
    last = (data / "hub.log").read_text().strip().splitlines()[-1:]
    message = f"the hub did not start: {' '.join(last)}"
    raise StartError(message)
