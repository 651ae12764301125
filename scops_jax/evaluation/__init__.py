"""Measures of a part segmentation and the baselines it is compared with."""
