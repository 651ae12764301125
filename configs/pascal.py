"""Objects of one PASCAL VOC category with the paper's networks and the release's settings; K = 4.

python -m scops_jax.main --config=configs/pascal.py --workdir=runs/horse --config.pascal.category=horse \
  --config.segmenter_weights=resnet50_caffe-788b5fa3.pth --config.reference_weights=vgg19-dcbb9e9d.pth

Needs VOC 2010 and PASCAL-Part in data/pascal (scops_jax/data/published/pascal_parts.py says where),
unsupervised saliency maps in data/pascal/saliency/NAME.png, and a GPU. Neither its time nor its result has
been measured here, for lack of the images. The paper's foreground IoU of horses is 55.8 % without CRF.
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

  config.data.name = "pascal_parts"
  config.data.dir = "data/pascal"
  # "" takes the annotated silhouettes instead, supervision that the paper does not use.
  config.data.saliency_dir = "data/pascal/saliency"
  config.pascal.category = "horse"
  return config
