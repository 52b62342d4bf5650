"""Learning rates that fall from the head down: one factor a stage."""

from collections.abc import Collection, Sequence

from tljax.models.net import HEAD, NORM
from tljax.models.vit import POOL, PRE_LOGITS

# They read what the last block has put out, and have the head's rate.
TOP_STAGES = (POOL, PRE_LOGITS, HEAD)


def layer_ids(stages: Sequence[str]) -> dict[str, int]:
    """Number the layers that decay counts: 0 for the stem, one more for each block, and one more for the top.

    The final norm belongs to the last block's layer, and the pooling stages to the head's. Frozen stages count too, so
    that a stage has the same rate however many before it are frozen.

    Source:
        timm/optim/_param_groups.py, `param_groups_layer_decay`, with the `group_matcher` of timm's ViT, ResNet and
        ResNetV2. In VGG every convolution and linear layer before the head is a layer here; timm gives the linear
        ones, which its matcher does not know, the rate of the head.
    """
    ids: dict[str, int] = {}
    last = -1
    for stage in stages:
        if stage not in TOP_STAGES:
            last = max(last, 0) if stage == NORM else last + 1
            ids[stage] = last
    return {stage: ids.get(stage, last + 1) for stage in stages}


def stage_factors(
    stages: Sequence[str], trained: Collection[str], *, layer_decay: float | None, lowest_rate: float | None
) -> dict[str, float]:
    """Return the factor on the rate of each trained stage; see `groups.make_groups`.

    Raises:
        ValueError: both ways are asked for, a number is not in (0, 1], or `lowest_rate` has no layer to lower.
    """
    if layer_decay is not None and lowest_rate is not None:
        raise ValueError(f"layer_decay={layer_decay} and lowest_rate={lowest_rate}: wanted one of the two, or none")
    for name, value in (("layer_decay", layer_decay), ("lowest_rate", lowest_rate)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name} is {value}, wanted 0 < {name} <= 1")
    ids = layer_ids(stages)
    distances = {stage: max(ids.values()) - ids[stage] for stage in stages if stage in trained}
    if layer_decay is not None:
        return {stage: layer_decay**distance for stage, distance in distances.items()}
    if lowest_rate is None:
        return dict.fromkeys(distances, 1.0)
    farthest = max(distances.values())
    if farthest == 0:
        raise ValueError(
            f"lowest_rate={lowest_rate} is the rate of the first trained layer, but only {', '.join(distances)} is "
            "trained, at rate 1; train more or leave lowest_rate out"
        )
    return {stage: lowest_rate ** (distance / farthest) for stage, distance in distances.items()}
