"""Birds of one CUB-200-2011 category with the paper's networks and the release's settings; K = 4.

python -m scops_jax.main --config=configs/cub.py --workdir=runs/cub1 --config.cub.category=1 \
  --config.segmenter_weights=resnet50_caffe-788b5fa3.pth --config.reference_weights=vgg19-dcbb9e9d.pth

Needs CUB-200-2011 with its segmentations in data/cub (scops_jax/data/published/cub_parts.py says where) and a
GPU. Neither time nor result has been measured here, because the images are not available. For categories 1, 2
and 3 the paper's landmark errors are 18.5, 18.8 and 21.1 % of the box's edge, and those of the authors'
released model 18.3, 17.7 and 17.0 % (both as quoted by Choudhury et al., NeurIPS 2021).
"""

from ml_collections import ConfigDict

from scops_jax.config import release_config


def get_config() -> ConfigDict:
  config = release_config()
  config.num_parts = 4
  config.segmenter = "deeplab50"
  config.data.name = "cub_parts"
  config.data.dir = "data/cub"
  config.data.landmark_normalizer = "box"
  config.cub.category = 1
  return config
