"""The studies that are shipped: that their configs fit their tasks, and say what their documents say."""

import re

import pytest

from tests.stand_in import ROOT
from tljax.sweeping import load_study
from tljax.tasks.studies import plan_runs

FILES = sorted((ROOT / "experiments").glob("*/sweep.py"))


def test_there_are_studies():
    assert len(FILES) >= 4


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_a_shipped_study_can_be_planned(file, tmp_path):
    study = load_study(str(file))
    planned = plan_runs(study, tmp_path)
    assert study.slug == file.parent.name
    assert len(planned.runs) == len(planned.cells) * len(study.seeds)
    readme = (file.parent / "README.md").read_text()
    assert f"tljax sweep experiments/{file.parent.name}/sweep.py --max_parallel=2\n" in readme
    numbers = re.findall(r"the (\d+) runs have not been run", readme)
    assert numbers in ([], [str(len(planned.runs))])
    # Stages are named as in the network, and nothing is stored where nothing is frozen.
    for run in planned.runs.values():
        freeze, cache = run.config["groups"]["freeze"], run.config["finetune"]["cache"]
        assert re.fullmatch(r"embed|block_(0\d|1[01])|head", freeze)
        assert (cache == "never") == (freeze == "embed")
