"""Which stages are trained."""

import math
from collections.abc import Sequence
from fractions import Fraction

from tljax.paths import did_you_mean


def choose_trained(
    stages: tuple[str, ...], *, freeze: str | int | float | None, stages_trained: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the stages that are trained, in order of depth; see `groups.make_groups`.

    Raises:
        ValueError: not exactly one of the two is given, or one is no choice of these stages.
    """
    if (freeze is None) == (stages_trained is None):
        raise ValueError(
            f"freeze={freeze!r} and stages_trained={stages_trained!r}: wanted exactly one of the two, the first stage "
            "to train or all stages to train"
        )
    if freeze is not None:
        return stages[first_trained(stages, freeze) :]
    assert stages_trained is not None
    if isinstance(stages_trained, str) or not stages_trained:
        raise ValueError(f"stages_trained={stages_trained!r}, wanted a list of stages, such as ['{stages[0]}', 'head']")
    problems = [f"no stage {name!r}{did_you_mean(name, stages)}" for name in stages_trained if name not in stages]
    problems += [f"{name!r} comes twice" for name in stages if list(stages_trained).count(name) > 1]
    if problems:
        raise ValueError(f"stages_trained: {'; '.join(problems)}; stages are {', '.join(stages)}")
    return tuple(stage for stage in stages if stage in stages_trained)


def first_trained(stages: tuple[str, ...], freeze: str | int | float) -> int:
    """Return the index of the first stage that is trained.

    Raises:
        ValueError: `freeze` is no stage, index, negative number of stages or share.
    """
    count, wanted = len(stages), _number(freeze)
    if isinstance(wanted, str) and wanted in stages:
        return stages.index(wanted)
    if isinstance(wanted, float) and 0 <= wanted < 1:
        # As written: 0.29 of 100 stages are 29, and 0.29 * 100 is a little less.
        return math.floor(Fraction(str(wanted)) * (count - 1))
    if isinstance(wanted, int) and not isinstance(wanted, bool) and -count <= wanted < count:
        return wanted % count
    raise ValueError(
        f"freeze={wanted!r} is no stage{did_you_mean(str(wanted), stages)}; wanted the first stage to train, an index "
        f"in 0..{count - 1}, -1..-{count} to train so many of the last stages, a share in [0, 1) of the stages before "
        f"the head, or one of {', '.join(stages)}"
    )


def _number(freeze: str | int | float) -> str | int | float:
    """Read a number from text: a command line knows no numbers where the config has a name."""
    if not isinstance(freeze, str):
        return freeze
    digits = freeze.removeprefix("-")
    if digits.isdecimal():
        return int(freeze)
    return float(freeze) if digits.replace(".", "", 1).isdecimal() else freeze
