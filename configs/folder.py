"""Your own images: a folder of one category of objects, with masks or data.saliency=auto, on CPU or GPU.

python -m scops_jax.main --config=configs/folder.py --config.data.dir=DIR --workdir=runs/mine

DIR holds images/ and, where there are any, saliency/, landmarks.csv, parts/ and train.txt, test.txt; README,
"Your own images", says more. The settings hold for objects of any shape that are seen from both sides and
move their limbs. On 1 000 composed photographs of mammals, with other species for testing, 500 steps give a
landmark error of 0.081 of the image's edge (one seed; DFF on the same features 0.095) and foreground IoU 0.83
(experiments/photographs).

What is 0 here is chosen by the collection (scops_jax/runs/sizes.py has the rules): for 1 000 images 8
parts and 1 000 steps. --config.num_parts=… and the like choose otherwise.
"""

from ml_collections import ConfigDict

from scops_jax.config import default_config


def get_config() -> ConfigDict:
  config = default_config()

  config.data.name = "image_folder"
  config.data.landmark_normalizer = "image"

  config.num_parts = 0
  config.num_steps = 0
  config.batch_size = 8
  config.image_size = 0
  config.reference_image_size = 0
  # Each image comes several times; takes up to 0.8 MB an image on the disk, half of it as a rule.
  config.data.cache_reference_features = True

  # Deep layers tell parts also of kinds of objects that were not trained on, and so does a segmenter whose
  # trunk keeps its published weights, on images twice as large; it also follows outlines better.
  config.reference_layers = ("block13_depthwise", "block15_depthwise")
  config.reference_l2_normalize = True
  config.segmenter = "efficientnet_lite0_x2"
  config.optimizer.frozen_modules = ("stem", "block")

  config.log_every = 10
  config.eval_every = 0
  config.eval_batch_size = 8  # on a CPU the fastest
  config.checkpoint_every = 50

  # The left view of an animal mirrored is a right view, with the same parts.
  config.spatial.mirror_probability = 0.5
  config.reference_mirror = True
  config.spatial.rotation_degrees = 35.0
  config.spatial.scale_low = 0.8
  config.spatial.scale_high = 1.4

  # Meaning first: the features decide what a part is, geometry only keeps it in one place. With a semantic
  # term of the same size as the others parts become strips along the body, which satisfy all the others.
  config.semantic_assigned = True
  config.loss.semantic_consistency = 7500.0
  config.loss.concentration = 300.0
  config.loss.equivariance = 200.0
  config.loss.landmark_equivariance = 600.0
  config.loss.orthonormality = 0.0
  config.loss.balance = 50.0
  # Thin limbs are lost at the features' resolution: the background channel learns from the masks.
  config.loss.background = 1000.0

  config.optimizer.name = "adam"
  config.optimizer.schedule = "cosine"
  config.optimizer.learning_rate = 5e-4
  config.optimizer.head_multiplier = 5.0
  config.optimizer.basis_learning_rate = 3e-5  # the rows of normalised features are short
  config.optimizer.weight_decay = 0.0
  config.optimizer.warmup_steps = 20
  config.basis.initializer = "clusters"
  return config
