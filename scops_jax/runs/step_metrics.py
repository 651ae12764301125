"""The metrics of each step, and what happens to a step that is not finite (config.on_nonfinite_step).

Such a step leaves the state as it was (train_step), so it may be found later: on accelerators the metrics are
fetched where the loop needs them anyway, not in each step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from scops_jax.errors import UserError

_MOST_SKIPPED = 20  # in a row: then the run does not recover
_SHOWN = 8  # images of a message


class StepMetrics:
  """Collects the metrics of steps until `check` fetches them."""

  def __init__(self, config: ConfigDict, *, image_names: Callable[[int], Sequence[str]]) -> None:
    """Takes the run's config, and a function that returns the names of a step's images."""
    self._config, self._image_names = config, image_names
    self._unchecked: list[tuple[int, Mapping[str, Any]]] = []
    self._latest: dict[str, float] = {}
    self._skipped, self._in_a_row = 0, 0

  def add(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Keeps the metrics of a step, which need not be computed yet."""
    self._unchecked.append((step, metrics))

  def check(self) -> None:
    """Waits for the steps since the last call and looks at each.

    Raises:
      UserError: a step is not finite, and config.on_nonfinite_step is "error" or too many were skipped.
    """
    # All in one transfer.
    for step, metrics in jax.device_get(self._unchecked):
      scalars = {name: float(value) for name, value in metrics.items()}
      finite = scalars.pop("finite", 1.0) and all(map(math.isfinite, scalars.values()))
      if finite:
        self._latest, self._in_a_row = scalars, 0
        continue
      self._skipped, self._in_a_row = self._skipped + 1, self._in_a_row + 1
      if self._config.on_nonfinite_step == "error" or self._in_a_row > _MOST_SKIPPED:
        raise UserError(self._message(step, scalars))
    self._unchecked.clear()

  def take(self) -> dict[str, float] | None:
    """Returns the newest finite step's metrics; None if all steps since the last call were skipped.

    With config.on_nonfinite_step "skip" they have "skipped_steps", the number skipped since the last line.
    """
    if not self._latest:
      return None
    taken = self._latest
    if self._config.on_nonfinite_step == "skip":
      taken["skipped_steps"] = float(self._skipped)
    self._latest, self._skipped = {}, 0
    return taken

  def _message(self, step: int, scalars: dict[str, float]) -> str:
    terms = {name: value for name, value in scalars.items() if not math.isfinite(value)}
    causes = [name for name in terms if name not in ("loss", "gradient_norm")] or list(terms)
    what = (
      ", ".join(f"{name} is {terms[name]}" for name in causes)
      or "its gradient or new parameters are not finite"
    )
    names = self._image_names(step)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    shown = ", ".join(names[:_SHOWN]) + more
    if self._in_a_row > _MOST_SKIPPED:
      advice = f"it is one of {self._in_a_row} such steps in a row: start another workdir with a lower rate"
    elif step == 1:
      advice = "before the first update only the weight files or the images can be the cause"
    else:
      advice = (
        f"optimizer.learning_rate={self._config.optimizer.learning_rate} or a loss weight may be too high: "
        "lower it in another workdir, or go on here with on_nonfinite_step=skip"
      )
    return f"step {step} is not kept: {what} (images {shown}); {advice}"
