"""Every key of a run's configuration: its default, unit, meaning and where the paper sets it.

`configs/NAME.py` starts from `default_config()` and overrides; the code reads `config.x` and nothing else.
Losses, transforms and optimizer default to the paper's CelebA settings in this project's reductions (README,
"Losses"), networks and collection to the embedded ones. "Release" is the authors' published implementation,
"section" a section of the paper (arXiv 1905.01298), "beyond the paper" marks what the paper does not have:
such terms are off by default.
"""

from typing import Any

from ml_collections import ConfigDict

from scops_jax.errors import UserError


def default_config() -> ConfigDict:
  """Returns all keys with their defaults, locked: adding a key or changing a type raises.

  num_parts, num_steps, eval_every, image_size and reference_image_size may be 0: they are then chosen by the
  collection's size (runs/sizes.py), and the run's config.json has what was chosen.
  """
  config = ConfigDict()

  config.seed = 0  # every random draw of the run derives from it
  config.num_parts = 8  # K, foreground parts; the background is an extra channel
  config.num_steps = 100_000  # optimizer updates
  config.batch_size = 6  # images an update, over all devices and hosts
  config.image_size = 256  # pixels a side; images are resized to this square
  config.parallelism = "jit"  # "jit" (sharded over a mesh of all devices) or "pmap"
  # Whether networks that normalise with a batch's statistics (deeplab) take them over all devices' images, as
  # "jit" always does, or over each device's own.
  config.sync_batch_norm = True

  # What the segmenter computes in, "float32" or "bfloat16" (for GPUs and TPUs: a CPU is half as fast);
  # its parameters and the losses stay in float32.
  config.compute_dtype = "float32"
  config.segmenter = "efficientnet_lite0"  # the trained network, a name of models.create_segmenter
  config.segmenter_weights = "imagenet"  # "imagenet", "random", or a weight file's path
  config.reference = "efficientnet_lite0"  # the frozen feature network, a name of models.create_reference
  config.reference_weights = "imagenet"  # "imagenet", "random", or a weight file's path
  config.reference_layers = ("block10_depthwise",)  # V is their concatenation (section 3.3)
  config.reference_image_size = 256  # pixels a side of the reference's input; images are resized to it
  # Beyond the paper: average the features with those of the mirror image, for objects seen from both sides.
  config.reference_mirror = False
  # What it computes in: "float32", "bfloat16", or "auto": float32 on a CPU, else bfloat16.
  config.reference_dtype = "auto"
  config.reference_l2_normalize = False  # divide each position's features by their norm (release: an option)
  # Beyond the paper: the semantic term compares a pixel's features with each part's, not with their mixture,
  # and is a share of their energy, so that its weight does not depend on the reference and its layers.
  config.semantic_assigned = False

  config.log_every = 100  # steps between lines of metrics.jsonl
  config.eval_every = 10_000  # steps between evaluations; one more is done at the end
  config.checkpoint_every = 1_000  # steps between checkpoints; one more is written at the end
  config.eval_batch_size = 32  # images; the last, smaller batch is padded and masked, never dropped
  config.eval_num_train = 0  # images the landmark regression is fitted to, the first ones; 0 = all

  # Weights λ of the loss terms (section 3, equation 7; release values over the changed reductions).
  config.loss = ConfigDict()
  config.loss.concentration = 10.0 / 6.0
  config.loss.equivariance = 1000.0 / 9.0
  config.loss.landmark_equivariance = 100.0
  config.loss.semantic_consistency = 1e4
  config.loss.orthonormality = 0.1
  # Beyond the paper: the cross-entropy of the background channel against 1 - saliency, and a term that keeps
  # each part's share of the foreground from vanishing.
  config.loss.background = 0.0
  config.loss.balance = 0.0

  # The spatial transform T_s; it maps target to source coordinates in [-1, 1] (section 3.2).
  config.spatial = ConfigDict()
  config.spatial.mode = "similarity"  # "similarity", "projective" or "thin_plate" (the jitter alone)
  config.spatial.control_jitter = 0.01  # uniform ± on each of the 5 × 5 control points, half-image units
  config.spatial.rotation_degrees = 60.0  # uniform ±, in the image plane
  config.spatial.tilt_degrees = 10.0  # uniform ±, about x and about y; projective mode
  config.spatial.translation = 0.1  # uniform ±, half-image units; similarity mode
  config.spatial.scale_low = 0.7  # smallest magnification of the object
  config.spatial.scale_high = 2.0  # largest; source scales are uniform in [1 / high, 1 / low]
  config.spatial.mirror_probability = 0.0  # of x → -x, drawn for each image
  config.spatial.padding = "zeros"  # of warped images: "zeros" (the mean colour) or "border"

  # The appearance transform T_a (release): factors uniform in 1 ± value, hue shift uniform in ± value turns.
  config.appearance = ConfigDict()
  config.appearance.brightness = 0.3
  config.appearance.contrast = 0.3
  config.appearance.saturation = 0.2
  config.appearance.hue = 0.2

  config.optimizer = ConfigDict()
  config.optimizer.name = "sgd"  # "sgd" (the paper's) or "adam"
  config.optimizer.learning_rate = 1e-5  # of the backbone, at step 0
  config.optimizer.head_multiplier = 10.0  # the head learns this many times faster than the backbone
  config.optimizer.basis_learning_rate = 0.01  # of the part basis
  config.optimizer.momentum = 0.9  # of sgd; of adam, the decay of the first moment
  config.optimizer.weight_decay = 5e-4  # added to the clipped gradient
  config.optimizer.clip_norm = 5.0  # of the segmenter's gradient and, on its own, of the basis's
  config.optimizer.schedule = "poly"  # "poly": (1 - t/T)^power, basis constant; "cosine": all groups
  config.optimizer.power = 0.9  # of "poly"
  config.optimizer.warmup_steps = 0  # of linear warm-up before the schedule
  # Release: update a parameter of deeplab's backbone as often in one step as its optimizer lists it, 3 or 4
  # times, each time with momentum and weight decay. Of sgd only.
  config.optimizer.repeat_updates = False

  # Beyond the paper: modules of the segmenter that keep their published weights, by the beginnings of their
  # names: ("stem", "block0_"). The first ones see the most pixels: without their gradients a step is shorter.
  config.optimizer.frozen_modules = ()

  config.basis = ConfigDict()
  # "normal": |N(0, 1)| (release). Beyond the paper: "nmf", the DFF factorisation of the reference's features,
  # or "clusters", the same refined so that each position belongs to one part.
  config.basis.initializer = "normal"

  # Non-negative factorisation of the reference's features: the DFF baseline and a start for the basis.
  config.nmf = ConfigDict()
  config.nmf.num_images = 256  # training images it is fitted to
  config.nmf.num_iterations = 50  # reads of the features, each followed by three multiplicative updates

  # The fully connected CRF of foreground_iou_crf, after training (dense_crf.py, whose defaults these are).
  config.crf = ConfigDict()
  config.crf.num_iterations = 5  # mean-field updates; 0 = no CRF, foreground_iou_crf is null
  config.crf.smoothness_weight = 3.0
  config.crf.smoothness_sigma = 3.0  # pixels of an image whose longer side is 500; scales with the image
  config.crf.appearance_weight = 10.0
  config.crf.appearance_sigma = 80.0  # pixels of an image whose longer side is 500; scales with the image
  config.crf.color_sigma = 13.0  # grey levels, 0..255

  config.data = ConfigDict()
  config.data.name = "toy_faces"  # the collection
  config.data.dir = "data"  # the published files (not used by toy_faces, which draws its own)
  config.data.cache_dir = "data/tfds"  # prepared data sets are kept here
  config.data.num_threads = 2  # host threads that decode images
  # "collection": the collection's maps; "ones": every pixel is foreground; "auto": computed from the
  # reference's features of the whole collection, without labels (saliency.py).
  config.data.saliency = "collection"
  # The landmark error's unit: "inter_ocular" (the distance of the first two landmarks), "image" (its edge) or
  # "box" (the longer edge of the object's box), the image being the square that the network sees.
  config.data.landmark_normalizer = "inter_ocular"
  # Folder of PNGs, STEM.png for an image; "": the collection's published place. Computed maps are written to
  # it; "": to data.dir/saliency_auto of own images, else to saliency_auto beside the prepared data set.
  config.data.saliency_dir = ""
  config.data.on_bad_example = (
    "error"  # "error", or "skip" and list: an image or annotation that can't be read
  )
  # Compute the reference's features of the training images once and keep them beside the prepared data set,
  # as bfloat16 and with the resized images, instead of computing them in every step: worth it where an image
  # comes more than once.
  config.data.cache_reference_features = False

  config.cub = ConfigDict()
  config.cub.category = 1  # of cub_parts: 1 to 200, 0 = all

  config.toy_faces = ConfigDict()
  config.toy_faces.num_train = 2000  # images
  config.toy_faces.num_test = 400  # images
  config.toy_faces.seed = 0  # of the drawings

  config.auto_saliency = ConfigDict()  # of data.saliency = "auto"
  config.auto_saliency.num_images = 200  # training images that foreground and background are learned from

  config.folder = ConfigDict()
  config.folder.max_edge = 512  # pixels; image_folder keeps larger images reduced to this longer edge

  config.pascal = ConfigDict()
  config.pascal.category = "horse"  # of pascal_parts: the one whose objects are the images

  config.lock()
  return config


def config_from_json(saved: dict[str, Any]) -> ConfigDict:
  """Returns the complete, locked config that `saved`, its `to_dict()` in JSON, describes.

  Raises:
    AttributeError, KeyError, TypeError: it has a key that this version does not know, or another type of one.
  """
  config = default_config()
  config.update(_with_tuples(saved))
  return config


def _with_tuples(value: Any) -> Any:
  """Returns a tuple for every list, as JSON has no tuples and a config no lists."""
  if isinstance(value, dict):
    return {key: _with_tuples(entry) for key, entry in value.items()}
  return tuple(value) if isinstance(value, list) else value


_CHOICES = {
  "parallelism": ("jit", "pmap"),
  "compute_dtype": ("float32", "bfloat16"),
  "reference_dtype": ("auto", "float32", "bfloat16"),
  "spatial.mode": ("similarity", "projective", "thin_plate"),
  "spatial.padding": ("zeros", "border"),
  "optimizer.name": ("sgd", "adam"),
  "optimizer.schedule": ("poly", "cosine"),
  "basis.initializer": ("normal", "nmf", "clusters"),
  "data.saliency": ("collection", "ones", "auto"),
  "data.landmark_normalizer": ("inter_ocular", "image", "box"),
  "data.on_bad_example": ("error", "skip"),
  "pascal.category": ("aeroplane", "bus", "car", "cow", "horse", "motorbike", "sheep"),
}
# Keys that are chosen by the collection where they are 0: runs/sizes.py.
FROM_COLLECTION = ("num_parts", "num_steps", "eval_every", "image_size", "reference_image_size")
_AT_LEAST_ONE = (
  "batch_size",
  "log_every",
  "checkpoint_every",
  "eval_batch_size",
  "nmf.num_images",
  "nmf.num_iterations",
  "data.num_threads",
  "auto_saliency.num_images",
  "folder.max_edge",
  "toy_faces.num_train",
  "toy_faces.num_test",
)
_NOT_NEGATIVE = (
  "seed",
  "toy_faces.seed",
  "eval_num_train",
  "cub.category",
  "crf.num_iterations",
  "crf.smoothness_weight",
  "crf.appearance_weight",
)
_POSITIVE = ("crf.smoothness_sigma", "crf.appearance_sigma", "crf.color_sigma")


def check_values(config: ConfigDict) -> None:
  """Checks what types can't: counts and choices.

  Raises:
    UserError: names the key, its value and what is valid.
  """
  for key, choices in _CHOICES.items():
    if _value(config, key) not in choices:
      raise UserError(f"{key}={_value(config, key)!r} is not one of {', '.join(choices)}")
  for keys, is_valid, rule in (
    (FROM_COLLECTION, lambda value: value >= 0, "must be at least 1, or 0 to be chosen by the collection"),
    (_AT_LEAST_ONE, lambda value: value >= 1, "must be at least 1"),
    (_NOT_NEGATIVE, lambda value: value >= 0, "must not be negative"),
    (_POSITIVE, lambda value: value > 0, "must be positive"),
  ):
    for key in keys:
      if not is_valid(_value(config, key)):
        raise UserError(f"{key}={_value(config, key)} {rule}")
  # Labels are bytes: 255 parts and the background.
  if config.num_parts > 255:
    raise UserError(f"num_parts={config.num_parts} must be at most 255")
  if not 0 < config.spatial.scale_low <= config.spatial.scale_high:
    raise UserError(
      f"spatial.scale_low={config.spatial.scale_low} and scale_high={config.spatial.scale_high} "
      "must be positive and in this order"
    )
  _check_combinations(config)


def _check_combinations(config: ConfigDict) -> None:
  if config.optimizer.repeat_updates and config.optimizer.name != "sgd":
    raise UserError(
      f'optimizer.repeat_updates=True needs optimizer.name="sgd", not {config.optimizer.name!r}'
    )
  if not config.sync_batch_norm and config.parallelism != "pmap":
    raise UserError(f'sync_batch_norm=False needs parallelism="pmap", not {config.parallelism!r}')


def _value(config: ConfigDict, key: str) -> Any:
  for name in key.split("."):
    config = config[name]
  return config
