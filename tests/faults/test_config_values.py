"""Every number of the config has a range, and nonsense is refused before anything is built."""

import math

import pytest

from scops_jax.cli import check_file
from scops_jax.config import FROM_COLLECTION, RANGES, check_values, default_config, flat_values
from scops_jax.errors import UserError

NUMBERS = {
  key: value
  for key, value in flat_values(default_config()).items()
  if isinstance(value, int | float) and not isinstance(value, bool)
}


def changed(key, value):
  config = default_config()
  config.update_from_flattened_dict({key: value})
  return config


def test_every_number_has_a_range_and_its_default_lies_in_it():
  assert RANGES.keys() == NUMBERS.keys()
  check_values(default_config())


@pytest.mark.parametrize("key", sorted(NUMBERS))
def test_values_outside_are_refused_and_named(key):
  low, high = (float(bound) for bound in RANGES[key][1:-1].split(","))
  assert math.isfinite(low)
  assert math.isfinite(high)
  wrong = [-1, int(high) + 1]
  if isinstance(NUMBERS[key], float):
    wrong = [low - 0.01, high * 1.01, math.nan, math.inf, -math.inf]
    wrong += [low] * (RANGES[key][0] == "(") + [high] * (RANGES[key][-1] == ")")
  elif key not in FROM_COLLECTION and low > 0:
    wrong += [0]
  for value in wrong:
    with pytest.raises(UserError, match=rf"^{key}=\S+ is not in"):
      check_values(changed(key, value))


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("optimizer.learning_rate", -0.01),
    ("optimizer.clip_norm", 0.0),
    ("optimizer.momentum", 2.0),
    ("spatial.mirror_probability", 2.0),
    ("spatial.scale_high", math.inf),
    ("optimizer.warmup_steps", -5),
    ("loss.concentration", math.nan),
    ("seed", 2**63),
    ("image_size", 10**6),
    ("batch_size", 10**5),
    ("data.cache_dir", ""),
    ("segmenter_weights", ""),
    ("on_nonfinite_step", "ignore"),
  ],
)
def test_what_used_to_train_to_the_end_or_hang(key, value):
  with pytest.raises(UserError, match=f"^{key}"):
    check_values(changed(key, value))


def test_a_scale_above_the_other_is_named():
  with pytest.raises(UserError, match=r"spatial\.scale_low=3\.0 is above spatial\.scale_high"):
    check_values(changed("spatial.scale_low", 3.0))


@pytest.mark.parametrize(
  "argument", ["configs/toy_face.py", "config/toy_faces.py", "toy_faces.py:4", "toyfaces"]
)
def test_a_misspelt_config_file_names_the_nearest(argument):
  with pytest.raises(SystemExit, match=r"there is no file .*; the nearest is configs/toy_faces\.py"):
    check_file(argument)
