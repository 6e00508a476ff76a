"""Samples for training and evaluation, whatever they come from, and their augmentation."""
