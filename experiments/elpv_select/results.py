"""Gather the two selections into results.csv.

.venv/bin/python experiments/elpv_select/results.py runs/select runs/select_grouped
"""

import csv
import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Write one row per candidate and kind of folds."""
    rows = []
    for workdir in map(Path, sys.argv[1:]):
        record = json.loads((workdir / "select.json").read_text())
        for one in record["candidates"]:
            scores = {name: f"{value:.4f}" for name, value in sorted(one["scores"].items())}
            means = {"accuracy": f"{one['mean']:.4f}", "standard_error": f"{one['standard_error']:.4f}"}
            folds = {f"fold_{index}": f"{value:.4f}" for index, value in enumerate(one["accuracies"])}
            is_level = one["name"] in record["within_one_standard_error"]
            cost = {"params_m": f"{one['params_m']:.2f}", "gflops": f"{one['gflops']:.2f}", "width": one["width"]}
            found = {"held_out": record["held_out"], "candidate": one["name"], "level_with_best": is_level}
            rows.append({**found, **cost, **means, **scores, **folds})
    with open(HERE / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
