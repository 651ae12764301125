"""SIGTERM and SIGINT during training: the step in progress is finished and saved, then the run ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from scops_jax.runs import hosts

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption:
  """Remembers the first signal while the context is open; a second one ends the process at once.

  Where training does not run in the main thread, Python gives signals to nobody and this does nothing.
  """

  def __init__(self) -> None:
    self._received: signal.Signals | None = None
    self._before: dict[signal.Signals, Any] = {}
    self._at_once = False

  def __enter__(self) -> "Interruption":
    if threading.current_thread() is threading.main_thread():
      self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number: int, frame: FrameType | None) -> None:
    self._received = signal.Signals(number)
    for each in _SIGNALS:
      signal.signal(each, signal.SIG_DFL)
    if self._at_once:
      raise SystemExit(128 + number)

  def received(self) -> bool:
    """Returns whether a host has received a signal; all hosts must ask at the same step."""
    return hosts.any_host(self._received is not None)

  @contextmanager
  def at_once(self) -> Iterator[None]:
    """Ends the process by SystemExit as soon as the signal comes, in work that the next start repeats."""
    if self._received is not None:
      self.exit()
    self._at_once = True
    try:
      yield
    finally:
      self._at_once = False

  def exit(self) -> None:
    """Raises SystemExit with the code that shells give to a process ended by the signal: 128 + its number."""
    # On a host that has received none: another has, and all end with the same code.
    raise SystemExit(128 + (self._received or signal.SIGTERM))
