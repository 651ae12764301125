"""Saliency maps computed from the features of a collection, without labels."""
