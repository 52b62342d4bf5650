"""What kind of param a path names: norms, biases, and what weight decay is for."""

from tljax import paths

# Names of learned tokens and position tables. Decay pulls weights towards zero, which for these means
# towards "no position" and "no token"; timm's `no_weight_decay` lists the same.
UNDECAYED_NAMES = frozenset({"cls_token", "distillation_token", "registers", "pos_embed", "probe"})

# Modules are called norm, norm1 or shortcut_norm; the stage "norm" has its params directly under its name.
_NORM = r"(.*/)?(\w+_)?norm\d*/(scale|bias)"


def is_norm(path: str) -> bool:
    """Tell whether a param is the scale or the bias of a normalisation layer, of whatever kind."""
    return paths.matches_any([_NORM], path)


def is_bias(path: str) -> bool:
    """Tell whether a param is a bias, those of normalisation layers included."""
    return _name(path) == "bias"


def is_decayed(path: str, ndim: int) -> bool:
    """Tell whether weight decay applies: to matrices and kernels, not to 1-D params (biases, scales) or tokens."""
    return ndim > 1 and _name(path) not in UNDECAYED_NAMES


def _name(path: str) -> str:
    return path.rsplit("/", 1)[-1]
