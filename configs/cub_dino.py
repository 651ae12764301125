"""Birds of all 200 categories of CUB-200-2011 with DINOv2 features and a DINOv2 backbone; K = 4, 8 or 16.

python -m scops_jax.main --config=configs/cub_dino.py:8 --workdir=runs/cub_dino8 \
  --config.segmenter_weights=FILE --config.reference_weights=FILE

FILE is dinov2_vitb14_reg4_pretrain.pth, or the model.safetensors of facebook/dinov2-with-registers-base on
Hugging Face, the same for both keys. The number after the colon is K, by default 8. Needs CUB-200-2011 with
its segmentations in data/cub (scops_jax/data/published/cub_parts.py says where), or
--config.data.saliency=auto, and a GPU. Neither time nor result has been measured here, because the images and
the weights are not available. Concentration and balance weigh more than in celeba_dino.py, and there is a
background term.
"""

from ml_collections import ConfigDict

from scops_jax.config import dino_config


def get_config(num_parts: str = "8") -> ConfigDict:
  config = dino_config()
  config.num_parts = int(num_parts)

  # Birds are seen from both sides.
  config.spatial.mirror_probability = 0.5
  config.reference_mirror = True
  config.spatial.rotation_degrees = 35.0
  config.spatial.scale_low = 0.8
  config.spatial.scale_high = 1.4

  config.loss.concentration = 40.0
  config.loss.balance = 100.0
  config.loss.background = 300.0

  config.data.name = "cub_parts"
  config.data.dir = "data/cub"
  config.data.landmark_normalizer = "box"
  config.cub.category = 0
  return config
