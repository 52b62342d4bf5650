"""Main effects and interactions of a grid: what a factor changes while all others, and the seed, stay the same.

A cell is a choice of one level for each factor. A block is all that is equal in a comparison: the levels of the other
factors, and a seed. Only blocks that are complete, with a run at each level compared, have a part, so that a factor
never takes credit for the cells that another level lacks. Blocks are averaged within each seed first: seeds are what is
repeated, cells are what is studied.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tljax.ablation.comparison import Comparison, Values, as_family, compare
from tljax.ablation.intervals import Summary, summarise

Cell = tuple[str, ...]  # a level of each factor, in their order
Seed = tuple[int, ...]
Factors = Mapping[str, Sequence[str]]  # levels in their order
Results = Mapping[Cell, Values]


@dataclass(frozen=True, kw_only=True)
class MainEffect:
    """What the levels of one factor do.

    Args:
        factor: its name.
        levels: {level: mean over the complete blocks}.
        effects: {level: level - reference}, of all but the reference; adjusted by Holm's method in the family of the
            factor.
        reference: the level compared with.
        num_complete, num_blocks: blocks with all levels, and with any.
        num_seeds: seeds with a complete block.
    """

    factor: str
    levels: Mapping[str, Summary]
    effects: Mapping[str, Comparison]
    reference: str
    num_complete: int
    num_blocks: int
    num_seeds: int


def main_effect(factors: Factors, results: Results, factor: str, reference: str) -> MainEffect | None:
    """Compare the levels of one factor over complete blocks; None where there is no such block, or one level alone.

    Raises:
        ValueError: the factor has no such level.
    """
    levels = factors[factor]
    if reference not in levels:
        raise ValueError(f"factor {factor!r} has no level {reference!r}, only {', '.join(levels)}")
    if len(levels) < 2:
        return None
    complete, num_blocks = complete_blocks(factors, results, {factor: levels})
    if not complete:
        return None
    seeds = sorted({seed for _, seed in complete})
    means = {level: _by_seed(complete, (level,)) for level in levels}
    compared = [level for level in levels if level != reference]
    family = as_family([compare(means[level], means[reference]) for level in compared])
    return MainEffect(
        factor=factor,
        levels={level: found for level in levels if (found := summarise(list(means[level].values())))},
        effects={level: found for level, found in zip(compared, family, strict=True) if found},
        reference=reference,
        num_complete=len(complete),
        num_blocks=num_blocks,
        num_seeds=len(seeds),
    )


@dataclass(frozen=True, kw_only=True)
class Interaction:
    """How far two factors do more, or less, together than the sum of what each does.

    Args:
        factors: the two names.
        means: {(level of the first, level of the second): mean over the complete blocks}.
        contrasts: {the same pairs: mean - mean of its row - mean of its column + mean of all}, which is 0 everywhere
            where the factors only add up; adjusted by Holm's method in the family of the two factors.
        num_complete, num_blocks, num_seeds: as for `MainEffect`.
    """

    factors: tuple[str, str]
    means: Mapping[tuple[str, str], Summary]
    contrasts: Mapping[tuple[str, str], Comparison]
    num_complete: int
    num_blocks: int
    num_seeds: int


def interaction(factors: Factors, results: Results, first: str, second: str) -> Interaction | None:
    """Estimate the two-way interaction over blocks with all pairs of levels; None where there is no such block."""
    rows, columns = factors[first], factors[second]
    if len(rows) < 2 or len(columns) < 2:
        return None
    complete, num_blocks = complete_blocks(factors, results, {first: rows, second: columns})
    if not complete:
        return None
    pairs = list(itertools.product(rows, columns))
    by_pair = {pair: _by_seed(complete, pair) for pair in pairs}
    seeds = sorted(by_pair[pairs[0]])
    table = np.array([[by_pair[pair][seed] for pair in pairs] for seed in seeds]).reshape(-1, len(rows), len(columns))
    # s r c: what the sum of a row's and a column's effect says of each cell, within a seed
    added = (
        table.mean(axis=2, keepdims=True) + table.mean(axis=1, keepdims=True) - table.mean(axis=(1, 2), keepdims=True)
    )
    sums = dict(zip(pairs, added.reshape(len(seeds), -1).T, strict=True))
    family = as_family([compare(by_pair[pair], dict(zip(seeds, sums[pair].tolist(), strict=True))) for pair in pairs])
    return Interaction(
        factors=(first, second),
        means={pair: found for pair in pairs if (found := summarise(list(by_pair[pair].values())))},
        contrasts={pair: found for pair, found in zip(pairs, family, strict=True) if found},
        num_complete=len(complete),
        num_blocks=num_blocks,
        num_seeds=len(seeds),
    )


def complete_blocks(
    factors: Factors, results: Results, varied: Factors
) -> tuple[dict[tuple[Cell, Seed], dict[Cell, float]], int]:
    """Gather results by block, for the factors that are varied in it.

    Returns:
        {(levels of the other factors, seed): {levels of the varied factors: value}} of the complete blocks, and the
        number of blocks with any run.
    """
    names = list(factors)
    inside = [names.index(name) for name in varied]
    outside = [index for index in range(len(names)) if index not in inside]
    blocks: dict[tuple[Cell, Seed], dict[Cell, float]] = {}
    for cell, values in results.items():
        rest, own = tuple(cell[index] for index in outside), tuple(cell[index] for index in inside)
        for seed, value in values.items():
            blocks.setdefault((rest, seed), {})[own] = value
    wanted = set(itertools.product(*varied.values()))
    complete = {key: found for key, found in blocks.items() if found.keys() >= wanted}
    return complete, len(blocks)


def _by_seed(complete: Mapping[tuple[Cell, Seed], Mapping[Cell, float]], own: Cell) -> dict[Seed, float]:
    """Average one choice of levels over the complete blocks of each seed."""
    gathered: dict[Seed, list[float]] = {}
    for (_, seed), found in complete.items():
        gathered.setdefault(seed, []).append(found[own])
    return {seed: float(np.mean(values)) for seed, values in sorted(gathered.items())}
