"""Your own images: a folder of one category of objects, with masks or data.saliency=auto, on CPU or GPU.

python -m scops_jax.main --config=configs/folder.py --config.data.dir=DIR --workdir=runs/mine

DIR holds images/ and, if you have them, saliency/, landmarks.csv, parts/, train.txt and test.txt; see
docs/own-images.md. The settings suit objects of any shape that are seen from both sides and move their limbs.
On 1 000 composed photographs of mammals, tested on other species, they give a landmark error of 0.064 to
0.069 of the image's edge (three seeds, 1 050 steps; DFF on the same features 0.086 to 0.091) and a foreground
IoU of 0.90; on drawn quadrupeds 0.042 (seed 0, 1 000 steps; DFF 0.080) and 0.93, on drawn birds 0.028 (DFF
0.048) and 0.94 (experiments/photographs). A run on 1 000 photographs takes about 25 minutes of one core.

The collection and the networks decide the settings that are 0 or () here (scops_jax/runs/sizes.py has the
rules): 8 parts and 1 000 steps for 1 000 images. A flag such as --config.num_parts=6 overrides them.

To use the features of a DINO transformer instead of EfficientNet's, give its weights (docs/networks.md):

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
  config.reference_l2_normalize = True
  # The run sees each image several times. On disk this takes up to 0.8 MB per image, usually half of that.
  config.data.cache_reference_features = True

  # A trunk that keeps its published weights also tells the parts of kinds of objects that it was not trained
  # on. On images twice as large it follows their outlines better.
  config.segmenter = "efficientnet_lite0_x2"
  config.optimizer.frozen_modules = ("stem", "block")

  config.log_every = 10
  config.eval_every = 0
  config.eval_batch_size = 8  # the fastest on a CPU
  config.checkpoint_every = 50

  # The mirror image of an animal's left view is a right view with the same parts.
  config.spatial.mirror_probability = 0.5
  config.reference_mirror = True
  config.predict_mirror = True
  # Half as large again: 0.002 off the landmark error of mammals, for three times the cost of a prediction.
  config.predict_scales = (1.0, 1.5)
  config.spatial.rotation_degrees = 35.0
  config.spatial.scale_low = 0.8
  config.spatial.scale_high = 1.4

  # The features decide what a part is; geometry only keeps it in one place. If the semantic term is no larger
  # than the others, parts become strips along the body. With too little equivariance (200) the left and the
  # right end of drawn animals become parts, whichever way an animal looks.
  config.semantic_assigned = True
  config.loss.semantic_consistency = 7500.0
  config.loss.concentration = 300.0
  config.loss.equivariance = 800.0
  config.loss.landmark_equivariance = 2400.0
  config.loss.orthonormality = 0.0
  config.loss.balance = 50.0
  # The features are too coarse for thin limbs, so the background channel learns from the masks.
  config.loss.background = 1000.0
  # Boundaries follow the image's edges: 2 % off the landmark error of mammals; with 50 photographs 4 % more.
  config.loss.potts = 2000.0

  config.optimizer.name = "adam"
  config.optimizer.schedule = "cosine"
  # Only the decoder is trained. A quarter of the rate leaves it unfinished after these steps.
  config.optimizer.learning_rate = 2e-3
  config.optimizer.head_multiplier = 5.0
  config.optimizer.basis_learning_rate = 3e-5  # the rows of normalised features are short
  config.optimizer.weight_decay = 0.0
  config.optimizer.warmup_steps = 100  # faster, the first steps throw the parts about
  config.basis.initializer = "clusters"
  return config
