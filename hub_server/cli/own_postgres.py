"""The embedded Postgres as the commands run it: stopped on every exit path."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from hub_server.settings import Settings


@contextmanager
def own_postgres(settings: Settings, *, shared: bool = False) -> Iterator[str]:
    """Run the embedded Postgres; it stops however this process is asked to end.

    With ``shared`` one that a hub runs already will do. Raises DataDirBusyError otherwise.
    """
    # Imported here: with HUB_DATABASE_URL set, the extra `embedded` need not be installed.
    from hub_server.postgres import (  # noqa: PLC0415
        DataDirBusyError,
        embedded_postgres,
        exclusive,
        running_postgres,
    )

    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(settings.data_dir))
        except DataDirBusyError:
            if not shared:
                raise
            yield running_postgres(settings.data_dir)
            return
        postgres = embedded_postgres(settings.data_dir, connections=settings.connections)
        with _guarded(postgres) as url:
            yield url


def end_leases(url: str) -> None:
    """End what leases a hub before left behind on this Postgres, which serves one hub alone."""
    from hub_server.postgres import end_leases  # noqa: PLC0415 - as above

    end_leases(url)


@contextmanager
def _guarded(postgres: AbstractContextManager[str]) -> Iterator[str]:
    """Enter and leave the context whole, whatever signals come."""
    # Cut off in the midst of its start Postgres would be left running: the end waits until then.
    asked: list[int] = []
    _on_signals(lambda number, _: asked.append(number))
    with postgres as url:
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
