"""A published layout as a table of renames that reads in both directions."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from tljax import paths

# torch's axes, in the names that the tables use: o out, i in, h w space.
LINEAR = "o i -> i o"
CONV = "o i h w -> h w i o"


@dataclass(frozen=True)
class Rule:
    """One kind of param in two layouts.

    Args:
        source: template of the published key, such as "encoder.layer.{layer}.norm1.weight"; see `paths.rename`.
        target: template of our path, such as "block_{layer:02d}/norm1/scale". Several targets share one source:
            the first axis that `axes` makes counts them. A target with a field that the source lacks is a stack of
            layers, and the first axis (after that of several targets) counts those.
        axes: einops pattern from the published axes to ours; None leaves the array as it is.
    """

    source: str
    target: str | tuple[str, ...]
    axes: str | None = None

    @property
    def targets(self) -> tuple[str, ...]:
        """Return the targets as a tuple."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def numbers(self) -> frozenset[str]:
        """Name the fields that stand for numbers."""
        return paths.numbers(self.source, *self.targets)


def _unchanged(architecture: Any) -> Any:
    return architecture


def _no_sizes(architecture: Any) -> Mapping[str, int]:
    del architecture
    return {}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The way in which a project writes the params of one family of networks.

    Args:
        name: what `layout=` says, such as "timm-vit".
        description: the project and its classes, for listings.
        family: class of the architectures whose params it can hold.
        prefixes: text that may stand before every key but those of the head, tried in order.
        anchors: keys, after the prefix, that together tell the layout from all others.
        absent: keys, after the prefix, that no checkpoint of the layout has, where `anchors` are not enough.
        rules: from an architecture to rules that cover every key that carries a param of it; the first that
            matches wins.
        ignored: regexes of keys, after the prefix, that carry none for us.
        positions: how the project resamples position embeddings, one of `resample.METHODS`.
        published: from an architecture of the registry to what the project's own code computes, where that differs.
        sizes: from an architecture to the sizes of axes that patterns name and shapes do not give.
    """

    name: str
    description: str
    family: type
    prefixes: tuple[str, ...] = ("",)
    anchors: tuple[str, ...]
    absent: tuple[str, ...] = ()
    rules: Callable[[Any], tuple[Rule, ...]]
    ignored: tuple[str, ...] = ()
    positions: str = "cubic"
    published: Callable[[Any], Any] = _unchanged
    sizes: Callable[[Any], Mapping[str, int]] = _no_sizes

    def prefix(self, keys: Collection[str]) -> str | None:
        """Return the prefix under which all anchors are and no absent key is, or None where there is none."""
        for prefix in self.prefixes:
            if all(prefix + key in keys for key in self.anchors) and not any(
                prefix + key in keys for key in self.absent
            ):
                return prefix
        return None
