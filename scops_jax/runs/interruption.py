"""SIGTERM and SIGINT during training: the step in progress is finished and saved, then the run ends."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import jax

from scops_jax.runs import hosts

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedError(SystemExit):
  """Training was stopped by a signal, on all hosts; the code is that of `Interruption.exit`."""


@contextmanager
def leaving_together() -> Iterator[None]:
  """Disconnects hosts that a signal has stopped: a command then ends without what Python does at exit."""
  try:
    yield
  except StoppedError:
    hosts.leave()
    raise


class Interruption:
  """Remembers the first signal while the context is open; a second one ends the process at once.

  On several hosts all stop after the same step, although only one may have got a signal. Where training
  does not run in the main thread, Python gives signals to nobody and this does nothing.
  """

  def __init__(self, step: int) -> None:
    """Takes the step that has been done, the same on all hosts."""
    self._step = step
    self._received: signal.Signals | None = None
    self._before: dict[signal.Signals, Any] = {}
    self._at_once = False

  def __enter__(self) -> "Interruption":
    hosts.reached_stop(self._step)  # the hosts agree on a step after the last one that they asked about
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
    hosts.announce_stop()

  def stops_after(self, step: int) -> bool:
    """Returns whether a signal asks to stop after this step; all hosts ask after each step."""
    return hosts.reached_stop(step) if jax.process_count() > 1 else self._received is not None

  @contextmanager
  def at_once(self) -> Iterator[None]:
    """Ends the process by SystemExit as soon as the signal comes, in work that the next start repeats.

    Not on several hosts: the others would wait for this one. There the work is finished first.
    """
    if jax.process_count() > 1:
      yield
      return
    if self._received is not None:
      self.exit()
    self._at_once = True
    try:
      yield
    finally:
      self._at_once = False

  def exit(self) -> None:
    """Raises StoppedError with the code that shells give to a process ended by a signal: 128 + its number."""
    # On a host that has received none: another has, and all end with the same code.
    raise StoppedError(128 + (self._received or signal.SIGTERM))
