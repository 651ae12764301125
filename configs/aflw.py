"""AFLW's faces with the paper's networks and the release's settings; K = 8.

python -m scops_jax.main --config=configs/aflw.py --workdir=runs/aflw \
  --config.segmenter_weights=resnet50_caffe-788b5fa3.pth --config.reference_weights=vgg19-dcbb9e9d.pth

Needs AFLW in data/aflw with saliency maps (scops_jax/data/published/aflw.py says where) and a GPU. Neither
its time nor its result has been measured here, for lack of the images. The paper's landmark error is 16.5 %
of the eyes' distance, from 4 198 images and a split that is not published; `python -m scops_jax.prepare` ends
with the counts of your copy.
"""

from ml_collections import ConfigDict

from scops_jax.config import default_config


def get_config() -> ConfigDict:
  config = default_config()

  config.num_parts = 8
  config.num_steps = 100_000
  config.batch_size = 6
  config.image_size = 256

  config.segmenter = "deeplab50_2branch"
  config.segmenter_weights = "resnet50_caffe-788b5fa3.pth"
  config.reference = "vgg19"
  config.reference_weights = "vgg19-dcbb9e9d.pth"
  config.reference_layers = ("relu5_2", "relu5_4")
  config.reference_image_size = 256

  # The release's weights over this project's reductions: B images and K + 1 classes.
  config.loss.concentration = 10.0 / config.batch_size
  config.loss.equivariance = 1000.0 / (config.num_parts + 1)
  config.loss.landmark_equivariance = 100.0
  config.loss.semantic_consistency = 1e4
  config.loss.orthonormality = 0.1

  # Its optimizer visits most of the backbone's tensors several times a step.
  config.optimizer.repeat_updates = True

  config.data.name = "aflw"
  config.data.dir = "data/aflw"
  config.data.landmark_normalizer = "inter_ocular"
  return config
