"""The command line's checks, without a process of its own (tests/test_train.py has those)."""

import pytest

from scops_jax.cli import check_key


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
