"""The studies that are shipped: that their configs fit their tasks, and say what their documents say."""

import re

import jax
import pytest

from tests.stand_in import ROOT
from tljax.models import ARCHITECTURES, Net
from tljax.sweeping import load_study
from tljax.tasks.studies import plan_runs

FILES = sorted((ROOT / "experiments").glob("*/sweep.py"))
# What a study fine-tunes that its own run.py has made, and the architecture of that.
MADE = {"frozen_batch_norm": ("runs/frozen_batch_norm/pretrained", "resnet18")}


def test_there_are_studies():
    assert len(FILES) >= 8


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_a_shipped_study_can_be_planned(file, tmp_path, monkeypatch):
    folder, made = file.parent, MADE.get(file.parent.name)
    # As where they are run: a batch of 4 is none for the eight devices of the tests.
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    if made:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=f"python experiments/{folder.name}/run.py` makes it"):
            load_study(str(file))
        (tmp_path / made[0]).mkdir(parents=True)
    study = load_study(str(file))
    planned = plan_runs(study, tmp_path)
    assert study.slug == folder.name
    assert len(planned.runs) == len(planned.cells) * len(study.seeds)
    readme = (folder / "README.md").read_text()
    assert f"tljax sweep experiments/{folder.name}/sweep.py --max_parallel=2\n" in readme
    numbers = re.findall(r"the (\d+) runs have not been run", readme)
    assert numbers in ([], [str(len(planned.runs))])
    # Stages are named as in the network, and nothing is stored where nothing is frozen.
    for run in planned.runs.values():
        name, freeze = run.config["model"]["name"], run.config["groups"]["freeze"]
        assert name == f"file:{made[0]}" if made else not name.startswith("file:")
        architecture = made[1] if made else name.removeprefix("random:").partition(".")[0]
        stages = Net(ARCHITECTURES[architecture]).stages
        assert freeze in stages
        assert (run.config["finetune"]["cache"] == "never") == (freeze == stages[0])
