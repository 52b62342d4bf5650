"""Make pretrained arrays fit another net: other classes, image size, channels or patches."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from tljax.models.net import HEAD
from tljax.paths import did_you_mean, stage_of
from tljax.weights.resample import resample_patches, resample_positions

HEAD_INITS = ("zeros", "truncated_normal", "scaled")
_POSITIONS = "embed/pos_embed"


@dataclass(frozen=True, kw_only=True)
class NewHead:
    """How a new classifier starts.

    Args:
        init: "zeros" (equal probabilities, so that the first step decides), "truncated_normal" (standard deviation
            0.02, cut at twice that), or "scaled" (variance 1 / features, LeCun et al. 1998).
        class_priors: share of each class; the bias starts at their logarithms, so that the scores start at the
            prior. None starts it at zero.
        seed: of the random inits.
    """

    init: str = "zeros"
    class_priors: Sequence[float] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.init not in HEAD_INITS:
            near = did_you_mean(self.init, HEAD_INITS)
            raise ValueError(f"head init {self.init!r} is not known{near}; known: {', '.join(HEAD_INITS)}")
        if self.class_priors is not None and not all(share > 0 for share in self.class_priors):
            raise ValueError(f"class_priors are {self.class_priors}, wanted shares above 0")

    def arrays(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """Draw the params of a head.

        Args:
            shapes: path to shape, as "head/linear/kernel" [d k] and "head/linear/bias" [k].

        Raises:
            ValueError: there is not one prior a class.
        """
        return {path: self._draw(path, shape) for path, shape in shapes.items()}

    def _draw(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            if self.class_priors is None:
                return np.zeros(shape, np.float32)
            if len(self.class_priors) != shape[0]:
                raise ValueError(f"there are {len(self.class_priors)} class_priors for {shape[0]} classes")
            priors = np.asarray(self.class_priors, np.float64)
            return np.log(priors / priors.sum()).astype(np.float32)
        inits = {
            "zeros": nnx.initializers.zeros,
            "truncated_normal": nnx.initializers.truncated_normal(0.02),
            "scaled": nnx.initializers.lecun_normal(),
        }
        # A key of its own for each kernel, whatever the order.
        key = jax.random.fold_in(jax.random.key(self.seed), sum(path.encode()))
        return np.asarray(inits[self.init](key, shape, np.float32))


def target_architecture(
    native: Any,
    *,
    num_classes: int | None,
    image_size: int | tuple[int, int] | None,
    in_channels: int | None,
    patch_size: int | None,
) -> Any:
    """Return the architecture with what is asked for; None leaves a field.

    A new head drops a tanh layer before the old one, as Dosovitskiy et al. (2021, section 3.2) do, and has a bias.

    Raises:
        ValueError: the family has no such field, or the sizes do not go together.
    """
    names = {item.name for item in dataclasses.fields(native)}
    changes: dict[str, Any] = {"in_channels": in_channels, "patch_size": patch_size}
    if "image_size" in names:
        changes["image_size"] = image_size  # networks of feature maps take any size
    if num_classes is not None:
        changes |= {"num_classes": num_classes}
        changes |= {"has_head_bias": True} if "has_head_bias" in names else {}
        changes |= {"representation_width": 0} if "representation_width" in names else {}
    changes = {name: value for name, value in changes.items() if value is not None}
    unknown = sorted(set(changes) - names)
    if unknown:
        have = ", ".join(sorted(names))
        raise ValueError(f"a {type(native).__name__} has no {' and no '.join(unknown)}; it has {have}")
    return dataclasses.replace(native, **changes)


def adapt(path: str, array: np.ndarray, native: Any, target: Any, positions: str) -> np.ndarray:
    """Make one array of the native architecture fit the target's.

    Args:
        path: of the array.
        array: as published, in our axes.
        native: the architecture it comes from.
        target: the architecture it goes to.
        positions: how position embeddings are resampled; see `Layout`.
    """
    if path == _POSITIONS:
        prefix = native.positioned_prefix_tokens
        return resample_positions(array, native.grid, target.grid, prefix, positions)
    if stage_of(path) == native.stages[0] and array.ndim == 4 and array.shape[2] == native.in_channels:
        array = adapt_channels(array, target.in_channels)
        is_patch = path.startswith("embed/patch/")
        return resample_patches(array, target.patch_size) if is_patch else array
    return array


def adapt_channels(kernel: Float[np.ndarray, "h w i o"], channels: int) -> Float[np.ndarray, "h w j o"]:
    """Give the first convolution another number of input channels.

    One channel is the sum over the old ones, which is what a grey image in all of them would give. More channels
    repeat the old ones in turn, scaled so that equal channels give what they gave.

    Source: timm/models/_manipulate.py, adapt_input_conv.
    """
    old = kernel.shape[2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(channels) % old] * kernel.dtype.type(old / channels)


def class_indices(class_names: Sequence[str] | None, wanted: Sequence[str]) -> list[int]:
    """Find classes among those of a head, by name.

    Raises:
        ValueError: the source does not name its classes, or has none of such a name; all in one message.
    """
    if class_names is None:
        raise ValueError("the source does not name its classes, so none can be chosen by name")
    unknown = [f"{name!r}{did_you_mean(name, class_names)}" for name in wanted if name not in class_names]
    if unknown:
        raise ValueError(f"the head has no class {', '.join(unknown)}; it has {len(class_names)}")
    repeated = sorted({name for name in wanted if list(class_names).count(name) > 1 or list(wanted).count(name) > 1})
    if repeated:
        raise ValueError(f"classes {', '.join(map(repr, repeated))} are there more than once")
    return [list(class_names).index(name) for name in wanted]


def select_classes(path: str, array: np.ndarray, indices: Sequence[int] | None) -> np.ndarray:
    """Keep some classes of an array of the head; classes are its last axis."""
    return array if indices is None or stage_of(path) != HEAD else array[..., list(indices)]
