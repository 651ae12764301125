import json

import numpy as np
import pytest
from PIL import Image

from scops_jax.data.pipeline import evaluation_batches, train_batches

COUNT, SIDE = 10, 16


class Source:
  """Images whose every value is their index, in sizes H != W."""

  def __init__(self, count=COUNT, shape=(SIDE, SIDE)):
    self.count, self.shape = count, shape
    self.seen = []

  def __len__(self):
    return self.count

  def read(self, index, fields):
    self.seen.append(index)
    height, width = self.shape
    example = {
      "image": np.full((height, width, 3), index, np.uint8),
      "saliency": np.full((height, width), 200 + index, np.uint8),
      "landmarks": np.asarray([[0, 0], [width - 1, height - 1], [(width - 1) / 2, 0]], np.float32),
      "visible": np.asarray([True, False, True]),
      "box": np.asarray([0, (height - 1) / 4, (width - 1) / 2, height - 1], np.float32),
      "parts": (np.arange(height * width) % 3).reshape(height, width).astype(np.uint8),
    }
    return {field: example[field] for field in fields}


def indices(batch):
  return batch["image"][:, 0, 0, 0].tolist()


def batches_of(source, **options):
  defaults = {"batch_size": 4, "image_size": SIDE, "seed": 0, "num_threads": 2}
  return train_batches(source, **(defaults | options))


def take(batches, count):
  return [index for _ in range(count) for index in indices(next(batches))]


def test_train_batches_are_full_and_typed():
  batch = next(batches_of(Source()))
  assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
    "image": ((4, SIDE, SIDE, 3), np.uint8),
    "saliency": ((4, SIDE, SIDE), np.uint8),
  }
  np.testing.assert_array_equal(batch["saliency"][:, 0, 0], 200 + batch["image"][:, 0, 0, 0])


def test_every_epoch_has_each_image_once_in_another_order():
  drawn = np.reshape(take(batches_of(Source()), 10), (4, COUNT))  # 40 images = 4 epochs of 10
  assert (np.sort(drawn, axis=1) == np.arange(COUNT)).all()
  assert len({tuple(epoch) for epoch in drawn.tolist()}) == 4


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_order_depends_on_the_seed_only(num_threads):
  expected = take(batches_of(Source()), 8)
  assert take(batches_of(Source(), num_threads=num_threads), 8) == expected
  assert take(batches_of(Source(), seed=1), 8) != expected


def test_runs_of_neighbouring_seeds_do_not_share_epochs():
  first = np.reshape(take(batches_of(Source(), seed=0), 10), (4, COUNT)).tolist()
  second = np.reshape(take(batches_of(Source(), seed=1), 10), (4, COUNT)).tolist()
  assert not any(epoch in second for epoch in first)


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_resumes_with_the_batch_that_came_next(steps):
  batches = batches_of(Source())
  take(batches, steps)
  state = json.loads(json.dumps(batches.get_state()))
  expected = take(batches, 6)
  resumed = batches_of(Source())
  take(resumed, 2)  # what was read ahead before must be dropped
  resumed.set_state(state)
  assert take(resumed, 6) == expected


def test_the_hosts_pieces_are_the_batch_of_one_host():
  alone = batches_of(Source(), batch_size=6)
  hosts = [batches_of(Source(), batch_size=3, process_index=i, process_count=2) for i in range(2)]
  for _ in range(5):
    assert take(hosts[0], 1) + take(hosts[1], 1) == take(alone, 1)
  assert hosts[0].get_state() == hosts[1].get_state() == alone.get_state()


def test_resumes_on_another_number_of_hosts():
  alone = batches_of(Source(), batch_size=6)
  take(alone, 3)
  hosts = [batches_of(Source(), batch_size=2, process_index=i, process_count=3) for i in range(3)]
  for host in hosts:
    host.set_state(alone.get_state())
  assert [index for host in hosts for index in take(host, 1)] == take(alone, 1)


def test_a_host_reads_only_its_shard():
  source = Source()
  one_host = batches_of(source, batch_size=5, num_threads=0, process_index=1, process_count=2)
  drawn = take(one_host, 2)
  assert source.seen == drawn


def test_fewer_images_than_a_batch():
  drawn = take(batches_of(Source(count=3), batch_size=8), 3)  # 24 images = 8 epochs of 3
  assert (np.bincount(drawn) == 8).all()


def test_train_images_are_resized():
  batch = next(batches_of(Source(shape=(20, 30)), image_size=12))
  assert batch["image"].shape == (4, 12, 12, 3)
  assert batch["saliency"].shape == (4, 12, 12)


def test_evaluation_visits_every_image_once_and_pads():
  batches = list(evaluation_batches(Source(), batch_size=4, image_size=SIDE))
  assert [batch["image"].shape[0] for batch in batches] == [4, 4, 4]
  valid = np.concatenate([batch["valid"] for batch in batches])
  index = np.concatenate([batch["index"] for batch in batches])
  np.testing.assert_array_equal(valid, [True] * COUNT + [False] * 2)
  np.testing.assert_array_equal(index[valid], np.arange(COUNT))
  np.testing.assert_array_equal(np.concatenate([indices(batch) for batch in batches]), index)


def test_evaluation_hosts_have_equally_many_batches():
  hosts = [
    list(evaluation_batches(Source(), batch_size=2, image_size=SIDE, process_index=i, process_count=3))
    for i in range(3)
  ]
  assert [len(host) for host in hosts] == [2, 2, 2]
  # The pieces in the hosts' order; the third host's second piece is padding.
  seen = [index for pieces in zip(*hosts, strict=True) for b in pieces for index in b["index"][b["valid"]]]
  assert seen == list(range(COUNT))
  assert not hosts[2][1]["valid"].any()


def test_landmarks_are_resized_as_the_image_is():
  (batch,) = evaluation_batches(Source(count=2, shape=(20, 30)), batch_size=2, image_size=12)
  # Column 0 of 30 lies at (0 + 1/2) 12 / 30 - 1/2 = -0.3 of 12, row 0 of 20 at -0.2; 5.5 is the middle.
  x, y = 5.8 / 5.5, 5.7 / 5.5
  np.testing.assert_allclose(batch["landmarks"][0], [[-x, -y], [x, y], [0, -y]], atol=1e-6)
  assert batch["landmarks"].dtype == np.float32
  np.testing.assert_array_equal(batch["visible"], [[True, False, True]] * 2)
  np.testing.assert_allclose(batch["box"], [[-x, -y / 2, 0, y]] * 2, atol=1e-6)
  assert batch["box"].dtype == np.float32


def test_parts_keep_their_labels_when_resized():
  source = Source(count=1, shape=(20, 30))
  (batch,) = evaluation_batches(source, batch_size=1, image_size=40)
  parts = source.read(0, ["parts"])["parts"]
  expected = np.asarray(Image.fromarray(parts).resize((40, 40), Image.Resampling.NEAREST))
  np.testing.assert_array_equal(batch["parts"][0], expected)
  assert set(np.unique(batch["parts"])) <= {0, 1, 2}
