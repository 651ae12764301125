"""Objects of one PASCAL VOC category with the paper's networks and the release's settings; K = 4.

python -m scops_jax.main --config=configs/pascal.py --workdir=runs/horse --config.pascal.category=horse \
  --config.segmenter_weights=resnet50_caffe-788b5fa3.pth --config.reference_weights=vgg19-dcbb9e9d.pth

Needs VOC 2010 and PASCAL-Part in data/pascal (scops_jax/data/published/pascal_parts.py says where),
unsupervised saliency maps in data/pascal/saliency/NAME.png, and a GPU. Neither time nor result has been
measured here, because the images are not available. The paper's foreground IoU of horses is 55.8 % without
CRF.
"""

from ml_collections import ConfigDict

from scops_jax.config import release_config


def get_config() -> ConfigDict:
  config = release_config()
  config.num_parts = 4
  config.segmenter = "deeplab50"
  config.data.name = "pascal_parts"
  config.data.dir = "data/pascal"
  # "" takes the annotated silhouettes instead, supervision that the paper does not use.
  config.data.saliency_dir = "data/pascal/saliency"
  config.pascal.category = "horse"
  return config
