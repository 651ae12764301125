"""The command line's checks, without a process of its own (tests/test_train.py has those)."""

import pytest
from absl import flags

from scops_jax.cli import as_flags, check_key


@pytest.mark.parametrize("key", ["seed", "loss.concentration", "data.landmark_normalizer"])
def test_known_keys_pass(key):
  check_key(key)


@pytest.mark.parametrize(
  ("key", "nearest"),
  [("num_part", "num_parts"), ("loss.concentraton", "loss.concentration"), ("batchsize", "batch_size")],
)
def test_unknown_keys_name_the_nearest(key, nearest):
  with pytest.raises(SystemExit, match=f"nearest is '{nearest}'"):
    check_key(key)


def test_a_section_is_not_a_key():
  with pytest.raises(SystemExit, match="no config key 'loss'"):
    check_key("loss")


def test_the_librarys_errors_name_flags_in_a_command():
  assert "v" in flags.FLAGS  # absl's own; stands for any flag
  assert (
    as_flags("v=3 is wrong: try v=2, data.v=2 or x/v=2") == "--v=3 is wrong: try --v=2, data.v=2 or x/v=2"
  )
  assert as_flags("nosuchflag=3 is wrong") == "nosuchflag=3 is wrong"
