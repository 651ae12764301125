"""What a command is doing, on standard error: bars on a terminal, else a line every few seconds.

Nothing here knows JAX, so a command can speak before it loads anything else.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_SECONDS = 8.0  # between lines where there is no terminal
_muted = False
_said = 0.0  # when the last line was printed, time.monotonic's seconds


def mute() -> None:
  """Shows nothing from now on: of several hosts only the first speaks."""
  global _muted
  _muted = True


class Bar:
  """Counts towards a total: tqdm's bar on a terminal, else lines; both with the time that is left.

  That time is measured from the first update on, because what is counted is often compiled before it, and
  from the last `resume`.
  """

  def __init__(
    self, total: int, description: str, *, unit: str = "image", done: int = 0, first: str = ""
  ) -> None:
    """Shows the bar.

    Args:
      total: what is counted to.
      description: what is being done.
      unit: of what is counted, singular.
      done: how much of the total was done before.
      first: what is done before the first update, such as "compiling the step".
    """
    self._total, self._description, self._unit, self._first = total, description, unit, first
    self._count, self._counted, self._values = done, done, ""
    self._started = self._updated = time.monotonic()
    self._begun = False
    self._drawn = None
    if _on_terminal():
      waiting = f"{description} ({first})" if first else description
      self._drawn = tqdm(total=total, desc=waiting, unit=unit, initial=done, dynamic_ncols=True, leave=None)
    self._heart = _Heart(self._drawn.refresh if self._drawn is not None else self._say)

  def update(self, count: int = 1) -> None:
    """Counts `count` more."""
    self._count += count
    self._updated = time.monotonic()
    if not self._begun:
      self._begin()
    elif self._drawn is not None:
      self._drawn.update(count)
    if self._drawn is None and (self._count >= self._total or _since_said() >= _SECONDS):
      self._say()

  def _begin(self) -> None:
    """Measures the speed from the first update on."""
    self._begun = True
    self._started, self._counted = self._updated, self._count
    if self._drawn is not None:
      self._drawn.n = self._drawn.initial = self._drawn.last_print_n = self._count
      self._drawn.start_t = self._drawn.last_print_t = time.time()
      self._drawn.set_description(self._description)

  def resume(self) -> None:
    """Does not count the time since the last update."""
    now = time.monotonic()
    self._started += now - self._updated
    self._updated = now
    if self._drawn is not None:
      self._drawn.unpause()

  def show(self, **values: str) -> None:
    """Shows values behind the bar, from now on."""
    self._values = "".join(f", {name}={value}" for name, value in values.items())
    if self._drawn is not None:
      self._drawn.set_postfix_str(self._values[2:], refresh=False)

  def _say(self) -> None:
    took, counted = time.monotonic() - self._started, self._count - self._counted
    left = f", {_clock((self._total - self._count) * took / counted)} to go" if counted else ""
    waiting = f" ({self._first})" if self._first and not self._begun else ""
    text = f"{self._description}: {self._count} of {self._total} {self._unit}s"
    say(f"{text}{waiting}, {_clock(took)}{left}{self._values}")

  def close(self) -> None:
    """Ends the bar."""
    self._heart.stop()
    if self._drawn is not None:
      self._drawn.close()

  def __enter__(self) -> "Bar":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()


class _Heart:
  """Calls `beat` from a thread: each second on a terminal, else when nothing was said for a while.

  Where there is no terminal, only the innermost of what is going on speaks.
  """

  def __init__(self, beat: Callable[[], object]) -> None:
    self._beat, self._on_terminal, self._over = beat, _on_terminal(), threading.Event()
    _hearts.append(self)
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._thread.start()

  def _run(self) -> None:
    while not self._over.wait(1.0 if self._on_terminal else max(0.1, _SECONDS - _since_said())):
      if self._on_terminal or (_since_said() >= _SECONDS and _hearts[-1] is self):
        self._beat()

  def stop(self) -> None:
    """Ends the thread."""
    self._over.set()
    self._thread.join()
    if self in _hearts:
      _hearts.remove(self)


_hearts: list[_Heart] = []


def tracked(items: Iterable[T], total: int, description: str, *, size: int, first: str = "") -> Iterator[T]:
  """Yields batches of `size` images under a bar of `total` images; the last batch may hold fewer."""
  with Bar(total, description, first=first) as bar:
    left = total
    for item in items:
      yield item
      bar.update(min(size, left))
      left -= min(size, left)


@contextmanager
def phase(what: str) -> Iterator[None]:
  """Says what is being done, while it lasts for how long, and at the end how long it took."""
  began = time.monotonic()
  drawn = None
  if _on_terminal():
    drawn = tqdm(desc=what, bar_format="{desc} … {elapsed}", leave=False, dynamic_ncols=True)
  else:
    say(f"{what} …")
  heart = _Heart(drawn.refresh if drawn is not None else lambda: say(f"{what} … {_took(began)}"))
  try:
    yield
  finally:
    heart.stop()
    if drawn is not None:
      drawn.close()
  if drawn is not None or time.monotonic() - began >= 1:
    say(f"{what}: {_took(began)}")


def say(text: str) -> None:
  """Prints a line on standard error, above the bars that are open there."""
  global _said
  _said = time.monotonic()
  if not _muted:
    tqdm.write(text, file=sys.stderr)
    sys.stderr.flush()


def _since_said() -> float:
  return time.monotonic() - _said


def _on_terminal() -> bool:
  return sys.stderr.isatty() and not _muted


def _took(began: float) -> str:
  return f"{time.monotonic() - began:.1f} s"


def _clock(seconds: float) -> str:
  return tqdm.format_interval(seconds)
