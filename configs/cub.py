"""Birds of one CUB-200-2011 category with the paper's networks and the release's settings; K = 4.

python -m scops_jax.main --config=configs/cub.py --workdir=runs/cub1 --config.cub.category=1 \
  --config.segmenter_weights=resnet50_caffe-788b5fa3.pth --config.reference_weights=vgg19-dcbb9e9d.pth

Needs CUB-200-2011 with its segmentations in data/cub (scops_jax/data/published/cub_parts.py says where) and
a GPU.
Neither its time nor its result has been measured here, for lack of the images. The paper's landmark error is
18.3, 17.7 and 17.0 % of the box's edge for the categories 1, 2 and 3.
"""

from ml_collections import ConfigDict

from scops_jax.config import default_config


def get_config() -> ConfigDict:
  config = default_config()

  config.num_parts = 4
  config.num_steps = 100_000
  config.batch_size = 6
  config.image_size = 256

  config.segmenter = "deeplab50"
  config.segmenter_weights = "resnet50_caffe-788b5fa3.pth"
  config.reference = "vgg19"
  config.reference_weights = "vgg19-dcbb9e9d.pth"
  config.reference_layers = ("relu5_2", "relu5_4")
  config.reference_image_size = 256

  # The release's weights for faces over this project's reductions: B images and K + 1 classes.
  config.loss.concentration = 10.0 / config.batch_size
  config.loss.equivariance = 1000.0 / (config.num_parts + 1)
  config.loss.landmark_equivariance = 100.0
  config.loss.semantic_consistency = 1e4
  config.loss.orthonormality = 0.1

  # Its optimizer visits most of the backbone's tensors several times a step.
  config.optimizer.repeat_updates = True

  config.data.name = "cub_parts"
  config.data.dir = "data/cub"
  config.data.landmark_normalizer = "box"
  config.cub.category = 1
  return config
