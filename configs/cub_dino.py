"""Birds of all 200 categories of CUB-200-2011 with DINOv2 features and a DINOv2 backbone; K = 4, 8 or 16.

python -m scops_jax.main --config=configs/cub_dino.py:8 --workdir=runs/cub_dino8 \
  --config.segmenter_weights=FILE --config.reference_weights=FILE

FILE is dinov2_vitb14_reg4_pretrain.pth, or the model.safetensors of facebook/dinov2-with-registers-base on
Hugging Face, the same for both keys. The number after the colon is K, by default 8. Needs CUB-200-2011 with
its segmentations in data/cub (scops_jax/data/published/cub_parts.py says where), or
--config.data.saliency=auto, and a GPU. Neither time nor result has been measured here, because the images and
the weights are not available. Losses and optimizer are those of toy_faces.py with more concentration and
balance and a background term, and the features are scaled to the mean square that features have there.
"""

from ml_collections import ConfigDict

from scops_jax.config import default_config


def get_config(num_parts: str = "8") -> ConfigDict:
  config = default_config()

  config.num_parts = int(num_parts)
  config.num_steps = 20_000
  config.batch_size = 16
  config.image_size = 252  # 18 patches of 14 pixels

  config.segmenter = "dinov2_vitb14_reg"
  config.segmenter_weights = "dinov2_vitb14_reg4_pretrain.pth"
  # Only the head is trained. To train the transformer too, set () and a lower optimizer.learning_rate.
  config.optimizer.frozen_modules = ("embed", "block", "norm")
  config.compute_dtype = "bfloat16"
  config.reference = "dinov2_vitb14_reg"
  config.reference_weights = "dinov2_vitb14_reg4_pretrain.pth"
  config.reference_layers = ("norm",)
  config.reference_image_size = 448  # 32 patches
  config.signed_features.mean_square = 0.5

  # Birds are seen from both sides.
  config.spatial.mirror_probability = 0.5
  config.reference_mirror = True
  config.spatial.rotation_degrees = 35.0
  config.spatial.scale_low = 0.8
  config.spatial.scale_high = 1.4

  config.loss.concentration = 40.0
  config.loss.equivariance = 100.0
  config.loss.landmark_equivariance = 500.0
  config.loss.semantic_consistency = 2000.0
  config.loss.orthonormality = 1.0
  config.loss.balance = 100.0
  config.loss.background = 300.0

  config.optimizer.name = "adam"
  config.optimizer.schedule = "cosine"
  config.optimizer.learning_rate = 2e-4
  config.optimizer.head_multiplier = 5.0
  config.optimizer.basis_learning_rate = 1e-3
  config.optimizer.weight_decay = 0.0
  config.optimizer.warmup_steps = 200
  config.basis.initializer = "clusters"

  config.data.name = "cub_parts"
  config.data.dir = "data/cub"
  config.data.landmark_normalizer = "box"
  config.cub.category = 0
  return config
