"""Co-part segmentation of cartoon faces: the default run, on CPU.

python -m scops_jax.main --config=configs/toy_faces.py --workdir=runs/toy_faces

Expected on 2 CPU cores, in 3 to 7 minutes: landmark_error_test 0.053 to 0.059 (three seeds; DFF 0.115 to
0.118, mean shape 0.564), foreground_iou 0.98, every part between 0.03 and 0.35 of the foreground.
"""

from ml_collections import ConfigDict

from scops_jax.config import default_config


def get_config() -> ConfigDict:
  config = default_config()

  config.num_steps = 750
  config.batch_size = 8
  config.image_size = 128
  # Twice the image's size plus 1: the 17 × 17 cells of stride 16 then lie on the align-corners lattice.
  config.reference_image_size = 257
  # The run sees each image several times, and the DFF baseline needs the features anyway.
  config.data.cache_reference_features = True

  config.log_every = 10
  config.eval_every = 750  # only at the end: an evaluation takes as long as a hundred steps
  config.eval_batch_size = 8  # the fastest on a CPU
  config.checkpoint_every = 50

  # As in folder.py: the features, of one length, decide what a part is, and geometry keeps it in one place.
  config.reference_l2_normalize = True
  config.semantic_assigned = True
  config.loss.semantic_consistency = 7500.0
  config.loss.concentration = 300.0
  config.loss.equivariance = 800.0
  config.loss.landmark_equivariance = 2400.0
  config.loss.orthonormality = 0.0
  config.loss.balance = 50.0  # every face shows every part
  config.loss.background = 1000.0
  config.loss.potts = 2000.0  # boundaries at the drawing's edges; with 4 000 eyes or mouths share a part

  config.predict_scales = (1.25,)  # 6 % off the landmark error, for 1.6 times the cost of a prediction

  # The faces are turned by at most 30° and similar in size: in a short run, transforms near that do better.
  config.spatial.rotation_degrees = 35.0
  config.spatial.scale_low = 0.8
  config.spatial.scale_high = 1.4

  # The backbone keeps its published weights down to stride 8: as good here, in two thirds of a step's time.
  config.optimizer.frozen_modules = ("stem", "block0_", "block1_", "block2_", "block3_", "block4_")
  config.optimizer.name = "adam"
  config.optimizer.schedule = "cosine"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.head_multiplier = 5.0
  config.optimizer.basis_learning_rate = 3e-5  # the rows of normalised features are short
  config.optimizer.weight_decay = 0.0
  config.optimizer.warmup_steps = 100
  config.basis.initializer = "kmeans"
  return config
