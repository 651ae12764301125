"""AFLW's faces with the paper's networks and the release's settings; K = 8.

python -m scops_jax.main --config=configs/aflw.py --workdir=runs/aflw \
  --config.segmenter_weights=resnet50_caffe-788b5fa3.pth --config.reference_weights=vgg19-dcbb9e9d.pth

Needs AFLW in data/aflw with saliency maps (scops_jax/data/published/aflw.py says where) and a GPU. Neither
time nor result has been measured here, because the images are not available. The paper's landmark error is
16.5 % of the distance between the eyes, from 4 198 images and a split that is not published; `python -m
scops_jax.prepare` ends with the counts of your copy.
"""

from ml_collections import ConfigDict

from scops_jax.config import release_config


def get_config() -> ConfigDict:
  config = release_config()
  config.data.name = "aflw"
  config.data.dir = "data/aflw"
  return config
