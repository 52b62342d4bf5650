"""The answer of a job in sentences that say no more than its intervals allow."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tljax.ablation.stats import (
    FINETUNE,
    Estimate,
    Repeats,
    Row,
    best,
    estimate,
    paired_difference,
    unpaired_difference,
)

METHOD_NAMES = {
    "logistic": "logistic regression",
    "ridge": "ridge regression",
    "knn": "k nearest neighbours",
    "nearest_mean": "nearest class mean",
    "mlp": "MLP",
    FINETUNE: "fine-tuning",
}
# The two kinds of split whose difference is the optimism of splitting at random.
RANDOM, GROUPED = "stratified", "grouped"
MINUS = "\N{MINUS SIGN}"


def method_name(method: str) -> str:
    """Return the name of a method in a sentence; a method not known here goes by its own."""
    return METHOD_NAMES.get(method, method)


def row_name(row: Row) -> str:
    """Return the name of a row in a sentence."""
    return f"{method_name(row.method)} ({row.features})"


def number(value: int | float) -> str:
    """Write a metric."""
    return f"{value:.3f}".replace("-", MINUS)


def signed(value: int | float) -> str:
    """Write a difference of metrics."""
    return f"{value:+.3f}".replace("-", MINUS)


def interval(found: Estimate, *, is_difference: bool = False) -> str:
    """Write an interval, or say that there is none."""
    if not found.has_interval:
        return "n = 1, no interval"
    write = signed if is_difference else number
    return f"[{write(found.low)}, {write(found.high)}]"


@dataclass(frozen=True, kw_only=True)
class Spotlight:
    """The rows that the headline is about: the best probe and the best fine-tuning, where there are any."""

    probe: Row | None
    finetune: Row | None
    num_probes: int
    split: str  # on which "best" was judged
    overlaps: Mapping[str, float]  # test images over training images, by split


def choose_spotlight(rows: Sequence[Row], overlaps: Mapping[str, float]) -> Spotlight:
    """Choose by mean accuracy on the grouped split, or on the first where none is grouped."""
    split = GROUPED if GROUPED in overlaps else next(iter(overlaps))
    probes = [row for row in rows if row.method != FINETUNE]
    tuned = [row for row in rows if row.method == FINETUNE]
    return Spotlight(
        probe=best(probes, split),
        finetune=best(tuned, split),
        num_probes=len(probes),
        split=split,
        overlaps=overlaps,
    )


def margins(spotlight: Spotlight, metric: str) -> dict[str, Estimate | None]:
    """Return fine-tuning minus probe on each split, paired by repeat: both saw the same training images.

    The intervals allow for repeats that share images, since the verdict hangs on them.
    """
    probe, tuned = spotlight.probe, spotlight.finetune
    if not (probe and tuned):
        return {}
    return {
        split: paired_difference(tuned.repeats(split, metric), probe.repeats(split, metric), spotlight.overlaps[split])
        for split in spotlight.overlaps
    }


def optimism(spotlight: Spotlight, metric: str) -> dict[str, Estimate | None]:
    """Return random minus grouped split for each of the two rows; not paired, as the repeats differ in test images."""
    if not {RANDOM, GROUPED} <= set(spotlight.overlaps):
        return {}
    rows = {"the best probe": spotlight.probe, "fine-tuning": spotlight.finetune}
    return {
        name: unpaired_difference(row.repeats(RANDOM, metric), row.repeats(GROUPED, metric))
        for name, row in rows.items()
        if row
    }


def differences(spotlight: Spotlight, metric: str) -> dict[str, Estimate | None]:
    """Return all differences that the job is about, named for a table."""
    gains = {f"fine-tuning minus probe, {name}": one for name, one in margins(spotlight, metric).items()}
    gaps = {f"{RANDOM} minus {GROUPED}, {name}": one for name, one in optimism(spotlight, metric).items()}
    return gains | gaps


def verdict(spotlight: Spotlight) -> str:
    """Answer in one sentence whether fine-tuning beats the best probe."""
    if spotlight.probe is None or spotlight.finetune is None:
        return _without_comparison(spotlight)
    answers: dict[str, list[str]] = {}
    for split, found in margins(spotlight, "accuracy").items():
        answers.setdefault(_answer(found), []).append(split)
    clauses = [f"{answer} on the {' and the '.join(where)} splits" for answer, where in answers.items()]
    sentence = "; ".join(clauses) + "."
    return sentence[0].upper() + sentence[1:]


def _without_comparison(spotlight: Spotlight) -> str:
    if spotlight.probe:
        return f"The best probe is {row_name(spotlight.probe)}; no fine-tuning was run to compare it with."
    if spotlight.finetune:
        return f"Only {row_name(spotlight.finetune)} was run, and no probe to compare it with."
    return "Nothing was evaluated."


def _answer(found: Estimate | None) -> str:
    if found is None:
        return "fine-tuning and the best probe share no repeat to compare"
    if not found.has_interval:
        return "a single repeat cannot tell fine-tuning and the best probe apart"
    if not found.excludes_zero:
        return "fine-tuning and the best probe cannot be told apart"
    return f"fine-tuning {'beats' if found.mean > 0 else 'falls behind'} the best probe"


def compared(rows: Sequence[Row], splits: Sequence[str], model: str, data: str) -> str:
    """Say what this job set side by side."""
    num_tuned = sum(row.method == FINETUNE for row in rows)
    probes = _count(len(rows) - num_tuned, "probe on frozen features", "probes on frozen features")
    tuned = _count(num_tuned, "kind of fine-tuning", "kinds of fine-tuning")
    kinds = _count(len(splits), "kind of split", "kinds of split")
    return f"Compared: {probes} and {tuned} of {model}, on {kinds} of {data}."


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"


def evidence(spotlight: Spotlight) -> list[str]:
    """Give the numbers behind the verdict, and how much the random split flatters."""
    sentences = []
    probe, tuned = spotlight.probe, spotlight.finetune
    for split, margin in margins(spotlight, "accuracy").items():
        if probe and tuned and margin:
            # Of the repeats that both have, so that the difference is that of the two means.
            ours, theirs = tuned.repeats(split, "accuracy"), probe.repeats(split, "accuracy")
            shared = ours.keys() & theirs.keys()
            sentences.append(
                f"On the {split} splits {row_name(tuned)} reaches a mean accuracy of {_mean_of(ours, shared)} and the "
                f"best probe, {row_name(probe)}, {_mean_of(theirs, shared)} on the same repeats: a difference of "
                f"{signed(margin.mean)} ({_with_interval(margin)}, paired by repeat)."
            )
    lone = [row for row in (probe, tuned) if row and not (probe and tuned)]
    sentences += [
        f"On the {split} splits {row_name(row)} reaches a mean accuracy of {_mean(row, split)}."
        for row in lone
        for split in spotlight.overlaps
    ]
    gaps = optimism(spotlight, "accuracy")
    sentences += [_optimism(name, gap) for name, gap in gaps.items() if gap]
    if spotlight.num_probes > 1 and probe:
        sentences.append(
            f"The probe is the best of {spotlight.num_probes} by mean test accuracy on the {spotlight.split} splits, "
            "a choice that favours it a little."
        )
    return sentences


def _mean_of(values: Repeats, repeats: Collection[int]) -> str:
    found = estimate([values[repeat] for repeat in repeats])
    return number(found.mean) if found else "unknown"


def _mean(row: Row, split: str) -> str:
    found = row.estimate(split, "accuracy")
    return number(found.mean) if found else "unknown"


def _with_interval(found: Estimate) -> str:
    if not found.has_interval:
        return interval(found)
    return f"95% interval {interval(found, is_difference=True)}, n = {found.n}"


def _optimism(name: str, gap: Estimate) -> str:
    if gap.excludes_zero and gap.mean > 0:
        start = f"The {RANDOM} splits overstate the accuracy of {name} by {number(gap.mean)} against the {GROUPED} ones"
    else:
        start = f"From the {GROUPED} to the {RANDOM} splits the accuracy of {name} changes by {signed(gap.mean)}"
    return f"{start} ({_with_interval(gap)})."
