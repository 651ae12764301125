"""CelebA's faces in the wild with DINOv2 as the reference and as the backbone; K = 8.

python -m scops_jax.main --config=configs/celeba_dino.py --workdir=runs/celeba_dino \
  --config.segmenter_weights=FILE --config.reference_weights=FILE

FILE is dinov2_vitb14_reg4_pretrain.pth, or the model.safetensors of facebook/dinov2-with-registers-base on
Hugging Face, the same for both keys. configs/celeba_dino.py:4 gives K = 4; for DINOv3 set
--config.reference=dinov3_vitb16 and a reference_image_size that is a multiple of 16. Needs CelebA in
data/celeba with MAFL's lists and saliency maps (scops_jax/data/published/celeba_wild.py says where), or
--config.data.saliency=auto, and a GPU. Neither time nor result has been measured here, because the images and
the weights are not available.
"""

from ml_collections import ConfigDict

from scops_jax.config import dino_config


def get_config(num_parts: str = "8") -> ConfigDict:
  config = dino_config()
  config.num_parts = int(num_parts)
  config.data.name = "celeba_wild"
  config.data.dir = "data/celeba"
  return config
