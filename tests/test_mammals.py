"""The annotations of mammals, and a picture composed from a drawn animal."""

import json
import pathlib

import numpy as np
from PIL import Image

from experiments.photographs import make_mammals

FILE = pathlib.Path(make_mammals.__file__).with_name("mammal_annotations.json")
ANNOTATIONS = json.loads(FILE.read_text())


def test_no_species_is_in_both_splits_and_every_landmark_is_marked():
  species = {
    split: {each["species"] for each in ANNOTATIONS.values() if each["split"] == split}
    for split in ("train", "test")
  }
  assert not species["train"] & species["test"]
  assert (len(species["train"]), len(species["test"]), len(ANNOTATIONS)) == (21, 11, 45)
  for each in ANNOTATIONS.values():
    assert set(each["landmarks"]) == set(make_mammals.LANDMARKS)
    for mark in each["landmarks"].values():
      assert not mark["visible"] or (0 <= mark["x"] < each["width"] and 0 <= mark["y"] < each["height"])


def test_landmarks_follow_the_animal_into_the_picture(tmp_path):
  # A grey block with a red spot at every landmark.
  pixels = np.zeros((80, 120, 4), np.uint8)
  pixels[10:70, 10:110] = (90, 90, 90, 255)
  places = {
    name: {"x": 20 + 12 * i, "y": 20 + 5 * i, "visible": 1} for i, name in enumerate(make_mammals.LANDMARKS)
  }
  for place in places.values():
    pixels[place["y"] - 3 : place["y"] + 4, place["x"] - 3 : place["x"] + 4] = (255, 0, 0, 255)
  Image.fromarray(pixels).save(tmp_path / "block.png")
  annotation = {"file": "block.png", "width": 120, "height": 80, "landmarks": places}
  animal = make_mammals.load_animal(annotation, tmp_path)

  class Black:
    def sample(self, rng):
      return np.zeros((make_mammals.SIZE, make_mammals.SIZE, 3)), "black"

  for seed in range(4):
    picture = make_mammals.compose(animal, np.random.default_rng(seed), Black())
    red = picture.image[..., 0] - picture.image[..., 2]
    for (x, y), shown in zip(np.rint(picture.points).astype(int), picture.visible, strict=True):
      if shown and 1 <= x < 127 and 1 <= y < 127:
        assert red[y, x] > 0.3
        assert picture.saliency[y, x] > 0.5
