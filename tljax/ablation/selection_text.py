"""What a selection says in words: a table of candidates, how scores rank them, and a recommendation with its limits."""

import math
from collections.abc import Sequence

from tljax.ablation.selection import (
    LEAST_CANDIDATES,
    SCORE_NAMES,
    RankCorrelation,
    Scored,
    best_of,
    gap,
    level_with_best,
    recommended,
    score_names,
)

_ABSENT = "-"


def candidates_table(candidates: Sequence[Scored]) -> str:
    """Tabulate candidates in their order; the numbers are those of the chart."""
    names = score_names(candidates)
    head = ["#", "candidate", "features", "params M", "GFLOPs", "seconds", "probe accuracy"]
    rows = [[*head, *(SCORE_NAMES[name] for name in names)]]
    for number, one in enumerate(candidates, 1):
        seconds = _ABSENT if one.seconds is None else f"{one.seconds:.0f}"
        cost = [f"{one.width}", f"{one.params_m:.1f}", f"{one.gflops:.2f}", seconds]
        scores = [f"{one.scores[name]:.4f}" if name in one.scores else _ABSENT for name in names]
        rows.append([f"{number}", one.name, *cost, f"{one.mean:.4f} ± {one.standard_error:.4f}", *scores])
    return markdown_table(rows, num_texts=2)


def ranks_table(candidates: Sequence[Scored], correlations: dict[str, RankCorrelation]) -> str:
    """Tabulate how each score ranks the candidates against the probe, and what it would choose alone."""
    best = best_of(candidates)
    rows = [["score", "Spearman", "Kendall", "n", "chooses", "below the best by"]]
    for name in score_names(candidates):
        held = [one for one in candidates if name in one.scores]
        choice = max(held, key=lambda one: one.scores[name])
        difference, error = gap(choice, best)
        found = correlations.get(name)
        shown = [_ABSENT] * 2
        if found is not None:
            shown = [
                _with_interval(found.spearman, found.spearman_low, found.spearman_high),
                _with_interval(found.kendall, found.kendall_low, found.kendall_high),
            ]
        rows.append([SCORE_NAMES[name], *shown, f"{len(held)}", choice.name, f"{difference:.4f} ± {error:.4f}"])
    return markdown_table(rows, num_texts=1)


def agreement_table(agreement: dict[str, dict[str, float]]) -> str:
    """Tabulate Spearman's correlation of scores with each other."""
    rows = [["", *(SCORE_NAMES[name] for name in agreement)]]
    for one, found in agreement.items():
        cells = [f"{found[other]:.2f}" if other in found else _ABSENT for other in agreement]
        rows.append([SCORE_NAMES[one], *cells])
    return markdown_table(rows, num_texts=1)


def recommendation(candidates: Sequence[Scored], *, num_images: int, held_out: str) -> str:
    """Say which candidate to take, what that rests on and how sure it is.

    Args:
        candidates: all that were compared.
        num_images: that the probe was cross-validated on.
        held_out: what a fold holds out, such as "images" or "whole groups of 'block'".
    """
    best, chosen, level = best_of(candidates), recommended(candidates), level_with_best(candidates)
    num_folds = len(best.accuracies)
    lines = [
        f"Take {chosen.name}: accuracy {chosen.mean:.4f} ± {chosen.standard_error:.4f} (standard error), "
        f"{chosen.gflops:.2f} GFLOPs an image."
    ]
    if chosen is best and len(level) == 1:
        lines.append("It is the best, and no other is within one standard error of it over the same folds.")
    else:
        if chosen is not best:
            difference, error = gap(chosen, best)
            lines.append(
                f"{best.name} has the highest mean, {best.mean:.4f}, and is ahead by {difference:.4f} ± {error:.4f} "
                "over the same folds: within one standard error, at more GFLOPs."
            )
        others = [one.name for one in level if one is not chosen and one is not best]
        if others:
            lines.append(f"Within one standard error of the best as well: {', '.join(others)}.")
    lines.append(
        f"This rests on a logistic probe of frozen features, cross-validated over {num_folds} folds of {num_images:,} "
        f"images that hold out {held_out}, with accuracy as the measure. Folds share most of their training images, so "
        "the true errors are larger; and what is best frozen need not be best after fine-tuning."
    )
    if len(candidates) < LEAST_CANDIDATES:
        lines.append(f"With {len(candidates)} candidates, rank correlations of scores say little.")
    return " ".join(lines)


def markdown_table(rows: Sequence[Sequence[str]], *, num_texts: int) -> str:
    """Write rows, the first of which is the heading, as a Markdown table that reads in a terminal too.

    Args:
        rows: cells.
        num_texts: columns from the left that are aligned to the left; the others are numbers.
    """
    widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(rows[0]))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if column < num_texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * width if column < num_texts else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([line(rows[0]), line(rule), *map(line, rows[1:])])


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.2f}" if math.isnan(low) else f"{value:.2f} [{low:.2f}, {high:.2f}]"
