"""Levels of one factor against its first level, at each level of the others, of the results.csv of a study.

    python experiments/pairs.py experiments/training_images/results.csv groups.freeze
    python experiments/pairs.py FILE FACTOR --metric=roc_auc

Pairs have the same seed. All rows are one family for Holm's method; docs/report.md says what the numbers mean.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence

from tljax.ablation.comparison import as_family, compare

Rows = Sequence[Mapping[str, str]]


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("factor")
    parser.add_argument("--metric", default="accuracy")
    arguments = parser.parse_args()
    with open(arguments.file, newline="") as file:
        reader = csv.DictReader(file)
        rows, names = list(reader), list(reader.fieldnames or ())
    factors = names[: names.index("seed")]
    for name, known in ((arguments.factor, factors), (arguments.metric, names)):
        if name not in known:
            raise SystemExit(f"{arguments.file} has no {name!r}; it has {', '.join(known)}")
    print_pairs(rows, factors, arguments.factor, arguments.metric)


def print_pairs(rows: Rows, factors: Sequence[str], factor: str, metric: str) -> None:
    """Print what each level of a factor has more than the first one."""
    others = [name for name in factors if name != factor]
    places = list(dict.fromkeys(tuple(row[name] for name in others) for row in rows))
    first, *levels = dict.fromkeys(row[factor] for row in rows)

    def values(place: tuple[str, ...], level: str) -> dict[tuple[int, ...], float]:
        chosen = (row for row in rows if row[factor] == level and tuple(row[name] for name in others) == place)
        return {(int(row["seed"]),): float(row[metric]) for row in chosen if row[metric]}

    pairs = [(place, level) for place in places for level in levels]
    found = as_family([compare(values(place, level), values(place, first)) for place, level in pairs])
    print(f"| {' | '.join([*others, factor])} | {metric}, less that of {first} | pairs | p | p, Holm |")
    print("|---" * (len(others) + 5) + "|")
    for (place, level), one in zip(pairs, found, strict=True):
        if one is None:
            continue
        gain, p = one.difference, one.permutation.p
        interval = f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        print(f"| {' | '.join([*place, level])} | {interval} | {gain.n} | {p:.3f} | {one.adjusted_p:.3f} |")


if __name__ == "__main__":
    main()
