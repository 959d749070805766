"""SIGTERM ends a job as Ctrl-C does: what a scheduler stops gives its lease back and says so."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM for as long as this lasts."""
    before = signal.getsignal(signal.SIGTERM)
    hear_sigterm()
    try:
        yield
    finally:
        if _is_main() and before is not None:  # None: it was not Python's to begin with
            signal.signal(signal.SIGTERM, before)


def hear_sigterm() -> None:
    """Raise KeyboardInterrupt on SIGTERM from here on; again after Ray has put its own handler there."""
    if _is_main():
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
