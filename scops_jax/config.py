"""Every key of a run's configuration: its default, unit, range and meaning, and where the paper sets it.

A config file, `configs/NAME.py`, starts from `default_config()`, `release_config()` or `dino_config()` and
sets what differs; the code reads `config.x`. The losses, transforms and optimizer default to the paper's
CelebA settings (their weights in this project's reductions: docs/losses.md); the networks and the
collection default to those that need no download. "Release" is the authors' published implementation,
"section" a section of the paper (arXiv 1905.01298). "Beyond the paper" marks what the paper does not have; it
is off by default.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from scops_jax.errors import UserError


def default_config() -> ConfigDict:
  """Returns all keys with their defaults, locked: adding a key or changing a type raises.

  num_parts, num_steps, eval_every, image_size and reference_image_size may be 0: the collection's size then
  decides (runs/sizes.py), and the run's config.json holds the decision. reference_layers may be (): the
  network then decides.
  """
  config = ConfigDict()

  config.seed = 0  # 0 to 2³² - 1; every random draw of the run derives from it
  config.num_parts = 8  # K, foreground parts without the background, 1 to 255; 0 = by the collection
  config.num_steps = 100_000  # optimizer updates, ≥ 1; 0 = by the collection
  config.batch_size = 6  # B, images per update over all devices and hosts, ≥ 1
  config.image_size = 256  # pixels per side, ≥ 1; images are resized to this square; 0 = by the collection
  config.parallelism = "jit"  # "jit" (sharded over a mesh of all devices) or "pmap"
  # BatchNorms that use the batch's statistics (deeplab): True takes them over all devices, as "jit" always
  # does; False takes each device's own and needs "pmap".
  config.sync_batch_norm = True

  # The segmenter's arithmetic: "float32", "bfloat16" (half as fast on a CPU), or "auto": float32 on a CPU,
  # bfloat16 elsewhere. Its parameters, batch statistics and the losses stay in float32.
  config.compute_dtype = "auto"
  # Beyond the paper: predictions are averaged with those of the mirror image, at twice the cost. It needs
  # spatial.mirror_probability > 0; elsewhere parts may be left or right ones.
  config.predict_mirror = False
  # Beyond the paper: predictions are means over the image at these multiples of image_size, each above 0 and
  # at most 4. A multiple s costs s² times as much as 1. Larger images show smaller parts.
  config.predict_scales = (1.0,)
  config.segmenter = "efficientnet_lite0"  # the trained network, a name of models.create_segmenter
  config.segmenter_weights = "imagenet"  # "imagenet", "random", or the path of a weight file
  config.reference = "efficientnet_lite0"  # the frozen feature network, a name of models.create_reference
  config.reference_weights = "imagenet"  # "imagenet", "random", or the path of a weight file
  # V is their concatenation (section 3.3); () = the network's models.default_layers.
  config.reference_layers = ("block10_depthwise",)
  config.reference_image_size = 256  # pixels per side of the reference's input, ≥ 1; 0 = by the collection
  # Beyond the paper: average the features with those of the mirror image, for objects seen from both sides.
  config.reference_mirror = False
  # The reference's arithmetic: "float32", "bfloat16", or "auto": float32 on a CPU, bfloat16 elsewhere.
  config.reference_dtype = "auto"
  config.reference_l2_normalize = False  # divide each position's features by their norm (release: an option)
  # Beyond the paper: the semantic term compares a pixel's features with each part's, not with their mixture,
  # and is a share of their energy, so that its weight does not depend on the reference and its layers.
  config.semantic_assigned = False

  # Beyond the paper: what makes V ≥ 0, as the part basis and DFF need it, if the reference's features are
  # signed (dino…). No effect on other references.
  config.signed_features = ConfigDict()
  # "split": [relu(v), relu(-v)]; "minimum": v minus each channel's minimum over training images; "pca": split
  # coordinates along the principal directions of training images (models/nonnegative.py).
  config.signed_features.method = "split"
  config.signed_features.num_images = 64  # training images that "minimum" and "pca" are fitted to, ≥ 1
  config.signed_features.num_components = 64  # directions of "pca", ≥ 1; V has twice as many channels
  # Each position's code is scaled to this mean square over its channels, ≥ 0, so that one set of loss weights
  # suits any network; 0 = not scaled.
  config.signed_features.mean_square = 0.0

  config.log_every = 100  # steps between lines of metrics.jsonl, ≥ 1
  # Weights & Biases (extra `wandb`): the project that logs go to as well; "" = none.
  config.wandb_project = ""
  config.eval_every = 10_000  # steps between evaluations, ≥ 1; the run ends with one; 0 = by the collection
  config.checkpoint_every = 1_000  # steps between checkpoints, ≥ 1; evaluations and the end have one too
  # A step whose loss, gradients or new parameters are not finite is never kept: "error" stops the run, "skip"
  # leaves its update out and counts it in metrics.jsonl.
  config.on_nonfinite_step = "error"
  config.eval_batch_size = 32  # images, ≥ 1; the last batch is padded and masked, never dropped
  # Folder of compiled programs, local or in a bucket, so that a restart need not compile again; "" = none is
  # kept. The environment's JAX_COMPILATION_CACHE_DIR goes first.
  config.compilation_cache_dir = "~/.cache/scops_jax/compiled"

  # Weights λ of the loss terms (section 3, equation 7), ≥ 0; 0 = off. The release's values in this project's
  # reductions.
  config.loss = ConfigDict()
  config.loss.concentration = 10.0 / 6.0  # 10 / B
  config.loss.equivariance = 1000.0 / 9.0  # 1000 / (K + 1)
  config.loss.landmark_equivariance = 100.0
  config.loss.semantic_consistency = 1e4
  config.loss.orthonormality = 0.1
  # Beyond the paper: the cross-entropy of the background channel against 1 - saliency.
  config.loss.background = 0.0
  # Beyond the paper: keeps each part's share of the foreground from vanishing.
  config.loss.balance = 0.0
  # Beyond the paper: draws the parts' boundaries to the image's edges, and makes them short.
  config.loss.potts = 0.0

  # The spatial transform T_s (section 3.2); it maps target to source coordinates, both in [-1, 1].
  config.spatial = ConfigDict()
  config.spatial.mode = "similarity"  # "similarity", "projective" or "thin_plate" (the jitter only)
  config.spatial.control_jitter = 0.01  # uniform ± on each of 5 × 5 control points, half-image units, ≥ 0
  config.spatial.rotation_degrees = 60.0  # uniform ±, in the image plane, degrees, 0 to 180
  config.spatial.tilt_degrees = 10.0  # uniform ±, about x and about y, degrees, 0 to 90; projective mode
  config.spatial.translation = 0.1  # uniform ±, half-image units, ≥ 0; similarity mode
  config.spatial.scale_low = 0.7  # smallest magnification of the object, > 0
  config.spatial.scale_high = 2.0  # largest, ≥ scale_low; source scales are uniform in [1 / high, 1 / low]
  config.spatial.mirror_probability = 0.0  # of x → -x, drawn for each image, 0 to 1
  config.spatial.padding = "zeros"  # of warped images: "zeros" (the mean colour) or "border"

  # The appearance transform T_a (release).
  config.appearance = ConfigDict()
  config.appearance.brightness = 0.3  # factor uniform in 1 ± value, 0 to 1
  config.appearance.contrast = 0.3  # factor uniform in 1 ± value, 0 to 1
  config.appearance.saturation = 0.2  # factor uniform in 1 ± value, 0 to 1
  config.appearance.hue = 0.2  # shift uniform in ± value turns, 0 to 0.5

  config.optimizer = ConfigDict()
  config.optimizer.name = "sgd"  # "sgd" (the paper's) or "adam"
  config.optimizer.learning_rate = 1e-5  # of the backbone, at its highest, > 0
  config.optimizer.head_multiplier = 10.0  # the head's learning rate over the backbone's, > 0
  config.optimizer.basis_learning_rate = 0.01  # of the part basis, > 0
  config.optimizer.momentum = 0.9  # of sgd; of adam, the decay of the first moment; 0 to below 1
  config.optimizer.weight_decay = 5e-4  # added to the clipped gradient, ≥ 0
  config.optimizer.clip_norm = 5.0  # of the segmenter's gradient and, separately, the basis's, > 0
  config.optimizer.schedule = "poly"  # "poly": (1 - t/T)^power, basis constant; "cosine": all groups
  config.optimizer.power = 0.9  # of "poly", > 0
  config.optimizer.warmup_steps = 0  # of linear warm-up before the schedule, ≥ 0
  # Release: in one step, update each parameter of deeplab's residual stages as often as the optimizer lists
  # it, 3 or 4 times, each time with momentum and weight decay. Needs sgd.
  config.optimizer.repeat_updates = False
  # Beyond the paper: modules of the segmenter that keep their published weights, given by prefixes of their
  # names such as ("stem", "block0_"). The first modules see the most pixels: without their gradients a step
  # is shorter.
  config.optimizer.frozen_modules = ()

  config.basis = ConfigDict()
  # "normal": |N(0, 1)| (release). Beyond the paper: "nmf", the DFF factorisation of the reference's features;
  # "clusters", the same refined so that each position belongs to one part; "kmeans", the best of twenty
  # clusterings of the features, with which runs of other seeds come to much the same parts.
  config.basis.initializer = "normal"

  # Non-negative factorisation of the reference's features: the DFF baseline, and a start for the basis.
  config.nmf = ConfigDict()
  config.nmf.num_images = 256  # training images it is fitted to, ≥ 1
  config.nmf.num_iterations = 50  # passes over the features, each with three multiplicative updates, ≥ 1

  # The fully connected CRF of foreground_iou_crf, after training (dense_crf.py has the same defaults).
  config.crf = ConfigDict()
  config.crf.num_iterations = 5  # mean-field updates, ≥ 0; 0 = no CRF, and foreground_iou_crf is null
  config.crf.smoothness_weight = 3.0  # ≥ 0
  config.crf.smoothness_sigma = 3.0  # > 0, pixels of an image whose longer side is 500; scales with the image
  config.crf.appearance_weight = 10.0  # ≥ 0
  config.crf.appearance_sigma = 80.0  # > 0, pixels, as smoothness_sigma
  config.crf.color_sigma = 13.0  # > 0, grey levels of 0..255

  config.data = ConfigDict()
  config.data.name = "toy_faces"  # the collection, a name of data/collection.py
  config.data.dir = "data"  # folder of the published files or your own images; unused by toy_faces
  config.data.cache_dir = "data/tfds"  # folder of the prepared data sets, local or in a bucket
  config.data.num_threads = 0  # of each host, that decode images; 0 = one for each core, at most 32
  # "collection": the collection's maps; "ones": every pixel is foreground; "auto": computed without labels
  # from the reference's features of the whole collection (saliency/).
  config.data.saliency = "collection"
  # The landmark error's unit: "inter_ocular" (the distance of the first two landmarks), "image" (the edge of
  # the square that the network sees) or "box" (the longer edge of the object's box in that square).
  config.data.landmark_normalizer = "inter_ocular"
  # Folder of the maps, STEM.png for each image. "": the collection's own place; for computed maps
  # data.dir/saliency_auto (own images) or saliency_auto beside the prepared data set (all others).
  config.data.saliency_dir = ""
  # What an unreadable image or annotation does: "error" stops, "skip" leaves the image out and lists it.
  config.data.on_bad_example = "error"
  # Compute the reference's features of the training images once, not in every step, and keep them with the
  # resized images beside the prepared data set, as bfloat16. Worthwhile if the run sees images repeatedly.
  config.data.cache_reference_features = False

  config.cub = ConfigDict()
  config.cub.category = 1  # of cub_parts, 1 to 200; 0 = all

  config.toy_faces = ConfigDict()
  config.toy_faces.num_train = 2000  # images, ≥ 1
  config.toy_faces.num_test = 400  # images, ≥ 1
  config.toy_faces.seed = 0  # of the drawings, ≥ 0

  config.auto_saliency = ConfigDict()  # of data.saliency = "auto"
  config.auto_saliency.num_images = 200  # training images that the maps' model is learned from, ≥ 1

  config.folder = ConfigDict()
  config.folder.max_edge = 512  # pixels, ≥ 1; image_folder reduces larger images to this longer edge

  config.pascal = ConfigDict()
  config.pascal.category = "horse"  # of pascal_parts: images are the objects of this category

  config.lock()
  return config


def release_config() -> ConfigDict:
  """Returns the release's settings for faces, which its other collections share but for a few keys.

  It is kept here, not in `configs/`, because config files are executed by path, from any directory, and can
  import only what is installed.

  The release's weights 10 and 1000 are 10 / B and 1000 / (K + 1) in this project's reductions, and follow
  batch_size and num_parts until a config or the command line sets them.
  """
  config = default_config()
  config.segmenter = "deeplab50_2branch"
  config.segmenter_weights = "resnet50_caffe-788b5fa3.pth"
  config.reference = "vgg19"
  config.reference_weights = "vgg19-dcbb9e9d.pth"
  config.reference_layers = ("relu5_2", "relu5_4")
  config.loss.concentration = 10.0 / config.get_ref("batch_size").to_float()
  config.loss.equivariance = 1000.0 / (config.get_ref("num_parts").to_float() + 1.0)
  config.optimizer.repeat_updates = True
  return config


def dino_config() -> ConfigDict:
  """Returns settings for DINOv2 as the reference and as the backbone, which published collections share.

  The losses and the optimizer are those that served drawn faces with the paper's semantic term; the features
  are scaled to the mean square that EfficientNet's have there.
  """
  config = default_config()
  config.num_steps = 20_000
  config.batch_size = 16
  config.image_size = 252  # 18 patches of 14 pixels

  config.segmenter = config.reference = "dinov2_vitb14_reg"
  config.segmenter_weights = config.reference_weights = "dinov2_vitb14_reg4_pretrain.pth"
  # Only the head is trained. To train the transformer too, set () and a lower optimizer.learning_rate.
  config.optimizer.frozen_modules = ("embed", "block", "norm")
  config.compute_dtype = "bfloat16"
  config.reference_layers = ("norm",)
  config.reference_image_size = 448  # 32 patches
  config.signed_features.mean_square = 0.5

  config.loss.concentration = 15.0
  config.loss.equivariance = 100.0
  config.loss.landmark_equivariance = 500.0
  config.loss.semantic_consistency = 2000.0
  config.loss.orthonormality = 1.0
  config.loss.balance = 20.0

  config.optimizer.name = "adam"
  config.optimizer.schedule = "cosine"
  config.optimizer.learning_rate = 2e-4
  config.optimizer.head_multiplier = 5.0
  config.optimizer.basis_learning_rate = 1e-3
  config.optimizer.weight_decay = 0.0
  config.optimizer.warmup_steps = 200
  config.basis.initializer = "clusters"
  return config


def config_to_json(config: ConfigDict) -> str:
  """Returns the text of a run's config.json: all keys, and a digest of them as "digest"."""
  values = config.to_dict()
  return json.dumps({**values, "digest": _digest(values)}, indent=2, sort_keys=True) + "\n"


def config_from_json(saved: dict[str, Any]) -> ConfigDict:
  """Returns the complete, locked config of a run from its config.json; missing keys take their defaults.

  Raises:
    ValueError: the values are not those that were written.
    AttributeError, KeyError, TypeError: `saved` has a key that this version does not know, or a value
      of another type.
  """
  values = {key: value for key, value in saved.items() if key != "digest"}
  if saved.get("digest", _digest(values)) != _digest(values):
    raise ValueError('its values have changed since it was written (if on purpose, delete its "digest")')
  config = default_config()
  config.update(_with_tuples(values))
  return config


def _digest(values: dict[str, Any]) -> str:
  text = json.dumps(values, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _with_tuples(value: Any) -> Any:
  """Turns every list into a tuple: JSON has no tuples, and a config has no lists."""
  if isinstance(value, dict):
    return {key: _with_tuples(entry) for key, entry in value.items()}
  return tuple(value) if isinstance(value, list) else value


_CHOICES = {
  "data.name": ("aflw", "celeba_wild", "cub_parts", "image_folder", "pascal_parts", "toy_faces"),
  "parallelism": ("jit", "pmap"),
  "compute_dtype": ("auto", "float32", "bfloat16"),
  "reference_dtype": ("auto", "float32", "bfloat16"),
  "spatial.mode": ("similarity", "projective", "thin_plate"),
  "spatial.padding": ("zeros", "border"),
  "optimizer.name": ("sgd", "adam"),
  "optimizer.schedule": ("poly", "cosine"),
  "basis.initializer": ("normal", "nmf", "clusters", "kmeans"),
  "signed_features.method": ("split", "minimum", "pca"),
  "data.saliency": ("collection", "ones", "auto"),
  "data.landmark_normalizer": ("inter_ocular", "image", "box"),
  "data.on_bad_example": ("error", "skip"),
  "on_nonfinite_step": ("error", "skip"),
  "pascal.category": ("aeroplane", "bus", "car", "cow", "horse", "motorbike", "sheep"),
}
# Keys that may be 0: the collection's size then decides (runs/sizes.py).
FROM_COLLECTION = ("num_parts", "num_steps", "eval_every", "image_size", "reference_image_size")
# The interval of each number; "(" and ")" exclude a bound. Bounds that no equation asks for keep a mistyped
# value from filling the memory, from running without end or from overflowing float32.
RANGES = {
  "seed": "[0, 4294967295]",  # JAX keeps the lower 32 bits
  "num_parts": "[0, 255]",  # labels are bytes
  "num_steps": "[0, 1e9]",
  "batch_size": "[1, 16384]",
  "image_size": "[0, 4096]",
  "reference_image_size": "[0, 8193]",
  "signed_features.num_images": "[1, 1e6]",
  "signed_features.num_components": "[1, 1e5]",
  "signed_features.mean_square": "[0, 1e6]",
  "log_every": "[1, 1e9]",
  "eval_every": "[0, 1e9]",
  "checkpoint_every": "[1, 1e9]",
  "eval_batch_size": "[1, 16384]",
  "loss.concentration": "[0, 1e9]",
  "loss.equivariance": "[0, 1e9]",
  "loss.landmark_equivariance": "[0, 1e9]",
  "loss.semantic_consistency": "[0, 1e9]",
  "loss.orthonormality": "[0, 1e9]",
  "loss.background": "[0, 1e9]",
  "loss.balance": "[0, 1e9]",
  "loss.potts": "[0, 1e9]",
  "spatial.control_jitter": "[0, 2]",
  "spatial.rotation_degrees": "[0, 180]",
  "spatial.tilt_degrees": "[0, 90]",
  "spatial.translation": "[0, 2]",
  "spatial.scale_low": "(0, 100]",
  "spatial.scale_high": "(0, 100]",
  "spatial.mirror_probability": "[0, 1]",
  "appearance.brightness": "[0, 1]",
  "appearance.contrast": "[0, 1]",
  "appearance.saturation": "[0, 1]",
  "appearance.hue": "[0, 0.5]",
  "optimizer.learning_rate": "(0, 1e3]",
  "optimizer.head_multiplier": "(0, 1e6]",
  "optimizer.basis_learning_rate": "(0, 1e3]",
  "optimizer.momentum": "[0, 1)",
  "optimizer.weight_decay": "[0, 1e3]",
  "optimizer.clip_norm": "(0, 1e9]",
  "optimizer.power": "(0, 100]",
  "optimizer.warmup_steps": "[0, 1e9]",
  "nmf.num_images": "[1, 1e6]",
  "nmf.num_iterations": "[1, 1e6]",
  "crf.num_iterations": "[0, 1000]",
  "crf.smoothness_weight": "[0, 1e6]",
  "crf.smoothness_sigma": "(0, 1e6]",
  "crf.appearance_weight": "[0, 1e6]",
  "crf.appearance_sigma": "(0, 1e6]",
  "crf.color_sigma": "(0, 1e6]",
  "data.num_threads": "[0, 1024]",
  "cub.category": "[0, 200]",
  "toy_faces.num_train": "[1, 1e7]",
  "toy_faces.num_test": "[1, 1e7]",
  "toy_faces.seed": "[0, 4294967295]",
  "auto_saliency.num_images": "[1, 1e6]",
  "folder.max_edge": "[1, 65535]",
}
_SCALES = "(0, 4]"  # of predict_scales
_PATHS = ("data.dir", "data.cache_dir", "data.saliency_dir", "segmenter_weights", "reference_weights")
# The only text that may be empty.
_MAY_BE_EMPTY = ("wandb_project", "data.saliency_dir", "compilation_cache_dir")


def flat_values(config: ConfigDict) -> dict[str, Any]:
  """Returns the values by key, such as "loss.concentration"."""
  return dict(_values(config))


def _values(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Yields keys and values, those of sections last: weights may follow batch_size, which is checked first."""
  for key in sorted(config, key=lambda key: config.get_type(key) is ConfigDict):
    if config.get_type(key) is ConfigDict:
      yield from _values(config[key], f"{prefix}{key}.")
    else:
      yield prefix + key, config[key]


def check_values(config: ConfigDict) -> None:
  """Checks what types can't: ranges, choices and combinations.

  Raises:
    UserError: names the key, its value and what is valid.
  """
  for key, value in _values(config):
    if key in _CHOICES and value not in _CHOICES[key]:
      raise UserError(f"{key}={value!r} is not one of {', '.join(_CHOICES[key])}")
    if key in RANGES and not _within(value, RANGES[key]):
      decided = ", where 0 lets the collection decide" if key in FROM_COLLECTION else ""
      raise UserError(f"{key}={value} is not in {RANGES[key]}{decided}")
    if key == "predict_scales" and not (value and all(_is_scale(scale) for scale in value)):
      raise UserError(f"predict_scales={value} is not one or more numbers in {_SCALES}, such as 1.0,1.5")
    if value == "" and key not in _MAY_BE_EMPTY:
      raise UserError(f"{key} is empty")
    if key in _PATHS and (value == "~" or value.startswith("~/")):
      raise UserError(f"{key}={value}: a config file needs the whole path; only a command line may have ~")
  _check_combinations(config)


def _is_scale(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and _within(value, _SCALES)


def _within(value: float, interval: str) -> bool:
  """Returns whether a number, not NaN, lies in an interval such as "(0, 1e3]"."""
  low, high = (float(bound) for bound in interval[1:-1].split(","))
  return (low <= value if interval[0] == "[" else low < value) and (
    value <= high if interval[-1] == "]" else value < high
  )


def _check_combinations(config: ConfigDict) -> None:
  if config.spatial.scale_low > config.spatial.scale_high:
    raise UserError(
      f"spatial.scale_low={config.spatial.scale_low} is above spatial.scale_high={config.spatial.scale_high}"
    )
  if config.optimizer.repeat_updates and config.optimizer.name != "sgd":
    raise UserError(
      f'optimizer.repeat_updates=True needs optimizer.name="sgd", not {config.optimizer.name!r}'
    )
  if config.predict_mirror and not config.spatial.mirror_probability:
    raise UserError(
      "predict_mirror=True needs parts that mirroring keeps, so spatial.mirror_probability > 0, not 0: set "
      "predict_mirror=False, or let the transform mirror"
    )
  if not config.sync_batch_norm and config.parallelism != "pmap":
    raise UserError(f'sync_batch_norm=False needs parallelism="pmap", not {config.parallelism!r}')
