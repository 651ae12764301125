"""SCOPS, self-supervised co-part segmentation (CVPR 2019), in JAX and Flax."""

__version__ = "0.1.0"
