"""Record what statsmodels says of some numbers: `python -m tests.golden.make_statistics`, where it is installed.

Written with statsmodels 0.15.0.
"""

import json
from pathlib import Path

import numpy as np
import pandas
import statsmodels.api
import statsmodels.formula.api
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW

LEVELS = {"depth": ["all", "half", "head"], "rate": ["high", "low"], "decay": ["none", "some"]}
SEEDS = range(6)


def main() -> None:
    generator = np.random.default_rng(2026)
    rows = [
        {"depth": depth, "rate": rate, "decay": decay, "seed": seed, "value": float(generator.normal(0.9, 0.02))}
        for depth in LEVELS["depth"]
        for rate in LEVELS["rate"]
        for decay in LEVELS["decay"]
        for seed in SEEDS
    ]
    table = pandas.DataFrame(rows)
    summed = statsmodels.formula.api.ols("value ~ C(depth, Sum) * C(rate, Sum) + C(decay) + C(seed)", table).fit()
    treated = statsmodels.formula.api.ols("value ~ C(depth) + C(rate) + C(decay) + C(seed)", table).fit()
    p_values = [float(p) for p in generator.uniform(0, 0.2, 7)] + [0.011, 0.011]
    differences = generator.normal(0.01, 0.02, 6)
    interval = DescrStatsW(differences).tconfint_mean()
    found = {
        "levels": LEVELS,
        "rows": rows,
        "interaction": {name: float(value) for name, value in summed.params.items() if ":" in name},
        "effects": {name: float(value) for name, value in treated.params.items() if "[T." in name},
        "p_values": p_values,
        "holm": multipletests(p_values, method="holm")[1].tolist(),
        "differences": differences.tolist(),
        "interval": [float(end) for end in interval],
        "detectable": {n: float(TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)) for n in (2, 3, 5, 10, 30)},
        "statsmodels": statsmodels.__version__,
    }
    Path(__file__).with_name("statistics.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
