"""Pretrained weights: load, adapt, write back."""

from tljax.weights.load import Pretrained, load

__all__ = ["Pretrained", "load"]
