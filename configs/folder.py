"""Your own images: a folder of one category of objects, with masks or data.saliency=auto, on CPU or GPU.

python -m scops_jax.main --config=configs/folder.py --config.data.dir=DIR --workdir=runs/mine

DIR holds images/ and, where there are any, saliency/, landmarks.csv, parts/ and train.txt, test.txt; README,
"Your own images", says more. The settings hold for objects of any shape that are seen from both sides and
move their limbs. On 1 000 drawn quadrupeds and birds each (experiments/own_images) they give landmark
errors 0.42 and 0.51 of DFF's and foreground IoU 0.86 and 0.89 in 11 minutes on 2 CPU cores.

With the weights of a DINO transformer (README, "Networks") its features serve instead of EfficientNet's:

python -m scops_jax.main --config=configs/folder.py --config.data.dir=DIR --workdir=runs/mine \
  --config.reference=dinov2_vits14_reg --config.reference_weights=FILE

What is 0 or () here is chosen by the collection and the networks (scops_jax/runs/sizes.py has the rules):
for 1 000 images 8 parts and 1 000 steps. --config.num_parts=… and the like choose otherwise.
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
  # The loss weights below are for features of EfficientNet's size: about this on foregrounds.
  config.signed_features.mean_square = 0.5
  # Each image comes several times; takes up to 0.4 MB an image on the disk, half of it as a rule.
  config.data.cache_reference_features = True

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

  # With less concentration parts stay strips along the body; balance keeps the small ones alive then.
  config.loss.concentration = 40.0
  config.loss.equivariance = 100.0
  config.loss.landmark_equivariance = 500.0
  config.loss.semantic_consistency = 2000.0
  config.loss.orthonormality = 1.0
  config.loss.balance = 100.0
  # Thin limbs are lost at the features' resolution: the background channel learns from the masks.
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
