"""Your own images: a folder of one category of objects, with masks or data.saliency=auto, on CPU or GPU.

python -m scops_jax.main --config=configs/folder.py --config.data.dir=DIR --workdir=runs/mine

DIR holds images/ and, if you have them, saliency/, landmarks.csv, parts/, train.txt and test.txt; see README,
"Your own images". The settings suit objects of any shape that are seen from both sides and move their limbs.
On 1 000 drawn quadrupeds their landmark error is 0.42 of DFF's and their foreground IoU 0.86, on 1 000 drawn
birds 0.51 and 0.89, each in 11 minutes on 2 CPU cores (experiments/own_images).

The collection and the networks decide the settings that are 0 or () here (scops_jax/runs/sizes.py has the
rules): 8 parts and 1 000 steps for 1 000 images. A flag such as --config.num_parts=6 overrides them.

To use the features of a DINO transformer instead of EfficientNet's, give its weights (README, "DINO"):

python -m scops_jax.main --config=configs/folder.py --config.data.dir=DIR --workdir=runs/mine \
  --config.reference=dinov2_vits14_reg --config.reference_weights=FILE
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
  config.reference_layers = ()
  # The loss weights below suit EfficientNet's features, whose mean square on the foreground is about this.
  config.signed_features.mean_square = 0.5
  # The run sees each image several times. On disk this takes up to 0.4 MB per image, usually half of that.
  config.data.cache_reference_features = True

  config.log_every = 10
  config.eval_every = 0
  config.eval_batch_size = 8  # the fastest on a CPU
  config.checkpoint_every = 50

  # The mirror image of an animal's left view is a right view with the same parts.
  config.spatial.mirror_probability = 0.5
  config.reference_mirror = True
  config.spatial.rotation_degrees = 35.0
  config.spatial.scale_low = 0.8
  config.spatial.scale_high = 1.4

  # With less concentration, parts remain strips along the body. With this much, small parts need balance to
  # survive.
  config.loss.concentration = 40.0
  config.loss.equivariance = 100.0
  config.loss.landmark_equivariance = 500.0
  config.loss.semantic_consistency = 2000.0
  config.loss.orthonormality = 1.0
  config.loss.balance = 100.0
  # The features are too coarse for thin limbs, so the background channel learns from the masks.
  config.loss.background = 300.0

  config.optimizer.name = "adam"
  config.optimizer.schedule = "cosine"
  config.optimizer.learning_rate = 5e-4
  config.optimizer.head_multiplier = 5.0
  config.optimizer.basis_learning_rate = 1e-3
  config.optimizer.weight_decay = 0.0
  config.optimizer.warmup_steps = 20
  config.basis.initializer = "clusters"
  return config
