"""CelebA's faces in the wild with the paper's networks and the release's settings; K = 8.

python -m scops_jax.main --config=configs/celeba.py --workdir=runs/celeba \
  --config.segmenter_weights=resnet50_caffe-788b5fa3.pth --config.reference_weights=vgg19-dcbb9e9d.pth

configs/celeba.py:4 gives K = 4, as --config.num_parts=4 does. Needs CelebA in data/celeba with MAFL's lists
and saliency maps (scops_jax/data/published/celeba_wild.py says where) and a GPU: a step takes 23 ms on an
H100, and more than 100 times as long on 2 CPU cores (experiments/benchmarks). The result has not been
measured here, because the images are not available. The paper's landmark error on MAFL is 15.0 % of the
distance between the eyes, 21.8 % with K = 4, after training on 45 609 images; `python -m scops_jax.prepare`
ends with the counts of your copy.
"""

from ml_collections import ConfigDict

from scops_jax.config import release_config


def get_config(num_parts: str = "8") -> ConfigDict:
  config = release_config()
  config.num_parts = int(num_parts)
  config.data.name = "celeba_wild"
  config.data.dir = "data/celeba"
  return config
