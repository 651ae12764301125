"""The embedded collection: cartoon faces drawn from a seed, with landmarks and ground-truth parts."""

from collections.abc import Iterator, Sequence
from typing import Any

from ml_collections import ConfigDict

from scops_jax.data.builder import CollectionBuilder, Example, encode_png
from scops_jax.data.toy_faces.canvas import PART_NAMES
from scops_jax.data.toy_faces.drawing import LANDMARK_NAMES
from scops_jax.data.toy_faces.processes import FaceProcesses
from scops_jax.data.workers import num_workers


class ToyFaces(CollectionBuilder, skip_registration=True):  # type: ignore[call-arg]
  """128 × 128 drawings; the seed, the split and the index determine each of them."""

  landmark_names = LANDMARK_NAMES
  part_names = PART_NAMES

  @classmethod
  def variant(cls, config: ConfigDict) -> str:
    faces = config.toy_faces
    return f"train{faces.num_train}-test{faces.num_test}-seed{faces.seed}"

  def list_records(self, split: str) -> Sequence[tuple[str, int]]:
    count = self.settings.toy_faces[f"num_{split}"]
    return [(split, index) for index in range(count)]

  def read_example(self, record: tuple[str, int]) -> Example:
    split, index = record
    face = self._processes.draw((self.settings.toy_faces.seed, self.splits.index(split), index))
    return Example(
      name=f"{split}/{index:06d}",
      image=encode_png(face.image),
      landmarks=face.landmarks,
      visible=face.visible,
      saliency=face.saliency,
      parts=face.parts,
    )

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with FaceProcesses(num_workers(self.settings.data)) as self._processes:
      yield from super()._generate_examples(split)
