"""Ctrl-C and SIGTERM end a run between two steps, after it has saved."""

import signal
import threading
from types import FrameType


class Interrupted(Exception):
    """The run was asked to stop and has saved; `signum` is the signal.

    Example:
        >>> import signal
        >>> Interrupted(signal.SIGINT, "stopped and saved").signum == signal.SIGINT
        True
    """

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.signum = signum


class Interrupts:
    """Context manager that notes SIGINT and SIGTERM; a second Ctrl-C ends at once.

    In other threads than the main one, where Python sets no handlers, it notes nothing.
    """

    signum = 0

    def __enter__(self) -> "Interrupts":
        self._old = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        del frame
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
