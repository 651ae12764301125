"""Parts by k-means on the frozen features of a folder of own images: what clustering alone gives.

python -m experiments.photographs.kmeans --dir=data/mammals

DIR is laid out as for configs/folder.py, with train.txt and test.txt. The features of each layer are divided
by their length, averaged over the mirror image, concatenated and centred. Then K clusters are fitted to the
foreground of the training images, also with the distance to a part's own centre in the image added to the
features' (what the concentration loss does), and every image's part centres regress its landmarks. The test
images' masks are used too, so this is a baseline that sees more than SCOPS.
"""

import argparse
import csv
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from scops_jax import geometry, models, weights
from scops_jax.evaluation.landmark_regression import regress_landmarks

NETWORK = "efficientnet_lite0"
CELLS = 64  # a side, where parts are scored


def read_folder(root: pathlib.Path, images: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, int]:
  """Returns images, masks, landmarks [N, L, 3] (x, y in [-1, 1], visible), and how many are to train on."""
  train, test = ((root / f"{split}.txt").read_text().split() for split in ("train", "test"))
  names = train[:images] + test
  rows = list(csv.DictReader((root / "landmarks.csv").open()))
  order = list(dict.fromkeys(row["landmark"] for row in rows))
  found = {(row["image"], row["landmark"]): row for row in rows}
  pictures, points, masks = [], [], []
  for name in names:
    picture = Image.open(root / "images" / name).convert("RGB")
    mask = Image.open(root / "saliency" / f"{pathlib.Path(name).stem}.png").convert("L")
    scale = np.array([picture.width - 1, picture.height - 1]) / 2
    marks = [found[name, landmark] for landmark in order]
    xy = np.array([[float(mark["x"]), float(mark["y"])] for mark in marks]) / scale - 1
    points.append(np.column_stack([xy, [float(mark["visible"]) for mark in marks]]))
    pictures.append(np.asarray(picture))
    masks.append(np.asarray(mask.resize((CELLS, CELLS), Image.Resampling.BILINEAR)) / np.float32(255))
  return pictures, np.stack(masks), np.stack(points), len(train[:images])


def features(pictures: list[np.ndarray], layers: tuple[str, ...], size: int) -> np.ndarray:
  """Returns [N, h, w, C], the layers' maps at the first one's resolution."""
  network = models.create_reference(NETWORK, layers, l2_normalize=True)
  variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
  path = weights.resolve("imagenet", NETWORK, "reference_weights")
  assert path is not None
  variables = weights.apply_state_dict(variables, weights.load_state_dict(path), model_name=NETWORK)

  @functools.partial(jax.jit)
  def compute(image: jax.Array) -> jax.Array:
    inputs = models.normalize(NETWORK, geometry.resize_bilinear(image[None].astype(jnp.float32), size, size))
    both = zip(network.apply(variables, inputs), network.apply(variables, inputs[:, :, ::-1]), strict=True)
    maps = [(plain + mirrored[:, :, ::-1]) / 2 for plain, mirrored in both]
    sides = maps[0].shape[1:3]
    return jnp.concatenate([geometry.resize_bilinear(m, *sides) for m in maps], axis=-1)[0]

  return np.stack([np.asarray(compute(picture), np.float16) for picture in pictures])


def cluster(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
  """Returns [K, C]: k-means from the k-means++ start."""
  means = rows[rng.choice(len(rows), 1)]
  for _ in range(count - 1):
    distance = np.min([np.square(rows - mean).sum(axis=1) for mean in means], axis=0)
    means = np.concatenate([means, rows[rng.choice(len(rows), 1, p=distance / distance.sum())]])
  for _ in range(25):
    labels = np.argmin(np.square(means).sum(axis=1) - 2 * rows @ means.T, axis=1)
    means = np.stack(
      [rows[labels == k].mean(axis=0) if (labels == k).any() else means[k] for k in range(count)]
    )
  return means


def compact(scores: np.ndarray, weight: np.ndarray, share: float) -> np.ndarray:
  """Subtracts from the scores [N, h, w, K] the squared distance to the part's centre in that image.

  share: of the clusters' mean squared error that the distances' mean is scaled to.
  """
  grid = geometry.coordinate_grid(*scores.shape[1:3])
  error = -scores.max(axis=-1)[weight > 0.3].mean()
  current, area = scores, weight.mean(axis=(1, 2))[:, None, None, None]
  for _ in range(10):
    parts = (current == current.max(axis=-1, keepdims=True)) * weight[..., None]
    mass = parts.sum(axis=(1, 2)) + 1e-6
    centers = np.einsum("nhwk,hwd->nkd", parts, grid) / mass[..., None]
    distance = np.square(grid[None, :, :, None] - centers[:, None, None]).sum(axis=-1) / area
    scale = share * error / ((parts * distance).sum() / parts.sum())
    current = scores - np.minimum(scale * distance, 9 * share * error)
  return current


def score(
  scores: np.ndarray, masks: np.ndarray, points: np.ndarray, num_train: int
) -> tuple[float, float, float]:
  """Returns the test images' landmark error over the image's edge, and the smallest and the largest part."""
  fine = np.asarray(geometry.resize_bilinear(jnp.asarray(scores), CELLS, CELLS))
  parts = (fine == fine.max(axis=-1, keepdims=True)) * (masks > 0.5)[..., None]
  grid = geometry.coordinate_grid(CELLS, CELLS)
  middle = np.einsum("nhw,hwd->nd", parts.any(axis=-1), grid) / parts.any(axis=-1).sum(axis=(1, 2))[:, None]
  mass = parts.sum(axis=(1, 2))
  # A part that an image does not show counts as in the object's middle.
  centers = np.einsum("nhwk,hwd->nkd", parts, grid) + 1e-3 * middle[:, None]
  centers /= mass[..., None] + 1e-3
  split = slice(0, num_train), slice(num_train, None)
  errors = regress_landmarks(
    *(array[rows] for rows in split for array in (centers, points[..., :2])),
    visible=(points[split[0], :, 2] > 0, points[split[1], :, 2] > 0),
    normalizer=(np.full(num_train, 2.0), np.full(len(points) - num_train, 2.0)),
  )
  shares = mass[num_train:].sum(axis=0) / mass[num_train:].sum()
  return errors.test, shares.min(), shares.max()


def main() -> None:
  """Prints a row for each start of the clusters."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--dir", type=pathlib.Path, required=True)
  parser.add_argument("--layers", default="block13_depthwise,block15_depthwise")
  parser.add_argument("--size", type=int, default=385, help="pixels a side of the reference's input")
  parser.add_argument("--parts", type=int, default=8)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--images", type=int, default=500, help="training images, the first ones")
  arguments = parser.parse_args()
  pictures, masks, points, num_train = read_folder(arguments.dir, arguments.images)
  maps = features(pictures, tuple(arguments.layers.split(",")), arguments.size).astype(np.float32)
  weight = np.asarray(geometry.resize_bilinear(jnp.asarray(masks)[..., None], *maps.shape[1:3]))[..., 0]
  rows = maps[:num_train][weight[:num_train] > 0.3]
  maps -= rows.mean(axis=0)
  rows = rows - rows.mean(axis=0)
  print(
    "| seed | k-means | smallest, largest | with compact parts | smallest, largest |\n|---|---|---|---|---|"
  )
  for seed in range(arguments.seeds):
    means = cluster(rows, arguments.parts, np.random.default_rng(seed))
    scores = 2 * maps @ means.T - np.square(means).sum(axis=1) - np.square(maps).sum(axis=-1, keepdims=True)
    plain = score(scores, masks, points, num_train)
    near = score(compact(scores, weight, 0.5), masks, points, num_train)
    cells = [f"{error:.4f} | {least:.3f}, {most:.3f}" for error, least, most in (plain, near)]
    print(f"| {seed} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
  main()
