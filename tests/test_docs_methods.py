"""Config lines of methods and habits are accepted, and the numbers of methods are those that were measured."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "experiments" / "method_costs"
# In a process of its own: the net is of zeros and its images are not there, which checked annotations would look for.
SCRIPT = """
import runpy

import measure
import methods

page = measure.PAGE.read_text()
assert measure.table(measure.read_rows()) in page, "the table is not that of results.csv"
base = page.split("```python\\n")[1].split("```")[0].splitlines()
assert base == methods.config_lines(methods.BASE), base
get_config = runpy.run_path(str(measure.ROOT / "configs" / "images.py"))["get_config"]
others = (measure.PAGE.parent / "from_pytorch.md").read_text()
rows = [line for line in [*page.splitlines(), *others.splitlines()] if " | `config." in line]
cells = [row.strip("| ").split(" | ")[1] for row in rows]
for cell in cells:
    config = get_config()
    for line in [*base, *cell.split("<br>")]:
        # A page is a list of statements, each as a config file would have it.
        exec(line.strip("`"), {"config": config})
    plans = measure.plan_each(config.to_dict())
    assert plans and all(plan.groups.trained_stages for plan in plans), cell
    print(cell)
"""


def test_config_lines_are_accepted_and_numbers_are_measured():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=FOLDER, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(result.stdout.splitlines()) > 55
