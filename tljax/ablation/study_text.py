"""What a study says in sentences, each number with its interval."""

from collections.abc import Sequence

from tljax.ablation.comparison import Comparison
from tljax.ablation.factorial import Cell
from tljax.ablation.headline import interval, number, signed
from tljax.ablation.intervals import BOOTSTRAP, Summary, T
from tljax.ablation.run_records import FAILED, FINISHED, UNFINISHED
from tljax.ablation.study import Study
from tljax.ablation.study_analysis import Analysis, cell_names, shown_pair

LEVEL = 0.05


def design(study: Study) -> str:
    """Say what was run, and what of it counts."""
    # A run may have several places in the grid.
    states = list({run.record.path: run.state for run in study.runs}.values())
    varied = [f"{len(levels)} of {name}" for name, levels in study.factors.items() if len(levels) > 1]
    grid = f"levels: {', '.join(varied)}" if varied else "no factor varies"
    counts = [f"{states.count(state)} {state}" for state in (FINISHED, FAILED, UNFINISHED) if state in states]
    return (
        f"{count(len(study.cells), 'cell')} ({grid}) with {count(len(study.seeds), 'seed')}: "
        f"{count(len(states), 'run')} of {study.task}, {', '.join(counts)}."
    )


def verdict(analysis: Analysis) -> list[str]:
    """Answer in a few sentences; the first is the headline."""
    if not analysis.study.finished:
        return ["No run has finished."]
    sentences = [*_chosen(analysis), *_against_pivot(analysis)]
    return sentences or [_without_choice(analysis)]


def _chosen(analysis: Analysis) -> list[str]:
    if analysis.choice is None or len(analysis.study.cells) < 2:
        return []
    choice, names, study = analysis.choice, cell_names(analysis), analysis.study
    test = next(one.test for one in analysis.cells if one.cell == choice.cell)
    if test is None:
        return []
    sentences = [f"Validation chooses {names[choice.cell]}: {study.metric} {with_interval(test)} on test images."]
    if choice.num_incomplete:
        sentences.append(f"Not to be chosen, for want of a seed: {count(choice.num_incomplete, 'cell')}.")
    return sentences


def _against_pivot(analysis: Analysis) -> list[str]:
    if analysis.pivot is None:
        return []
    names, pivot = cell_names(analysis), analysis.pivot
    title = "the baseline" if analysis.study.baseline is not None else "the second on validation"
    named = f"{title}, {names.get(pivot, ', '.join(pivot))}"
    if not analysis.comparisons:
        return [f"There is no seed to compare with {named}."]
    sentences = []
    pair = shown_pair(analysis)
    if pair is not None:
        found = dict(analysis.comparisons)[pair[0]]
        sentences.append(f"{names[pair[0]]} against {named}: {difference(found)}. {judgement(found)}")
    elif analysis.choice and analysis.choice.cell == pivot:
        sentences.append("That is the baseline itself.")
    if len(analysis.comparisons) > 1:
        shown = sum(found.is_shown for _, found in analysis.comparisons)
        sentences.append(
            f"{shown} of {len(analysis.comparisons)} cells differ from {named} by both the interval and the test, "
            "adjusted for their number."
        )
    return sentences


def _without_choice(analysis: Analysis) -> str:
    study = analysis.study
    if len(study.cells) < 2:
        found = next((one.test for one in analysis.cells if one.test), None)
        return f"One cell: {study.metric} {with_interval(found)} on test images." if found else "No run has finished."
    has_validation = any(one.validation for one in analysis.cells)
    why = "no cell has a run for every seed" if has_validation else "the runs have no validation results to choose by"
    return f"No cell is called best: {why}, and the study names no baseline. What the factors do stands below."


def with_interval(found: Summary) -> str:
    """Write a mean with its interval and n."""
    return f"{number(found.mean)} {interval(found)}" + (f" (n = {found.n})" if found.has_interval else "")


def difference(found: Comparison) -> str:
    """Write a difference with its interval, its tests and n."""
    one, test = found.difference, found.permutation
    if not one.has_interval:
        return f"{signed(one.mean)}, n = 1, no interval"
    p = f"p = {p_value(test.p)}" + ("" if test.is_exact else f" ± {test.error:.1g}")
    return (
        f"{signed(one.mean)} {interval(one, is_difference=True)} by {one.n} pairs of equal seed ({p} by sign flips, "
        f"{p_value(found.adjusted_p)} after Holm)"
    )


def judgement(found: Comparison) -> str:
    """Say what a difference allows to be said."""
    if not found.difference.has_interval:
        return "One pair says nothing of the spread."
    if found.is_shown:
        return "The interval excludes 0, and so does the test."
    if found.difference.excludes_zero and found.permutation.least > LEVEL:
        return (
            f"The interval excludes 0; {found.permutation.n} pairs cannot give a p below "
            f"{p_value(found.permutation.least)}, so only more seeds could show it by the test."
        )
    least = (
        ""
        if found.detectable is None
        else f" So many pairs find a true difference of {number(found.detectable)} 8 times of 10."
    )
    if found.difference.excludes_zero:
        return f"The interval excludes 0, the adjusted test does not.{least}"
    return f"They cannot be told apart.{least}"


def p_value(p: float) -> str:
    """Write a p value."""
    return "< 0.0001" if p < 0.0001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def methods_used(found: Sequence[Summary | None]) -> str:
    """Say how the intervals were made."""
    methods = {one.method for one in found if one is not None}
    names = {T: "Student's t (below 8 seeds)", BOOTSTRAP: "the expanded BCa bootstrap (8 seeds or more)"}
    used = [text for method, text in names.items() if method in methods]
    return f"95% intervals of the mean over seeds, by {' or '.join(used)}" if used else "one seed, so no intervals"


def count(n: int, thing: str) -> str:
    """Write a number of things."""
    return f"{n:,} {thing}{'' if n == 1 else 's'}"


def label(cell: Cell, analysis: Analysis) -> str:
    """Name a cell, the baseline as such."""
    name = cell_names(analysis).get(cell, ", ".join(cell))
    return f"{name} (baseline)" if cell == analysis.study.baseline else name
