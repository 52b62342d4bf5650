import json
import shutil

import numpy as np
import pytest

from tests.small_runs import make_config, metrics_of, write_model, write_pictures
from tljax import cli, rundir
from tljax.tasks import finetune
from tljax.tasks.replay import compare, read_config, replay_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run, with the pictures of it moved elsewhere since."""
    root = tmp_path_factory.mktemp("made")
    write_pictures(root / "pictures")
    write_model(root / "vit")
    # Whether the cache pays is measured, so a replay must take the decision of the run.
    finetune_section = {"cache": "auto", "keep": "best", "evaluate_every": 10}
    config = make_config(root, finetune=finetune_section, prefix={"dtype": "float32", "batch_size": 8})
    finetune.run({**config, "execution": {"compiled_dir": None}}, root / "run")
    (root / "pictures").rename(root / "moved")
    return root


@pytest.fixture(scope="module")
def replayed(made):
    """The run, copied, and run again."""
    shutil.copytree(made / "run", made / "copy")
    call = ["replay", str(made / "copy"), f"--workdir={made / 'again'}", f"--config.data.root={made / 'moved'}"]
    assert cli.main([*call, f"--config.cache_dir={made / 'other_cache'}"]) == 0
    return made / "copy", made / "again"


def copy_of(replayed, tmp_path):
    """A run and its replay, to be tampered with."""
    for name, path in zip(("run", "again"), replayed, strict=True):
        shutil.copytree(path, tmp_path / name, ignore=shutil.ignore_patterns("checkpoints"))
    return tmp_path / "run", tmp_path / "again"


def change(path, edit):
    value = rundir.read_json(path)
    edit(value)
    rundir.write_json(path, value)


def test_a_copied_run_gives_the_same_bits_elsewhere(replayed):
    run, again = replayed
    assert (run / "metrics.jsonl").read_bytes() == (again / "metrics.jsonl").read_bytes()
    assert len(metrics_of(again)) > 1
    assert rundir.read_json(run / "cache.json") == rundir.read_json(again / "cache.json")
    found = compare(run, again)
    assert found.differences == ()
    assert set(found.compared) == {"metrics.jsonl", "done.json", "evaluations.json", "predictions.npz"}
    # The paths are all that was not the same, and are named.
    assert [line.split(":")[1].strip() for line in found.causes] == ["config.cache_dir", "config.data.root"]


def test_the_first_step_that_differs_is_named(replayed, tmp_path, capsys):
    run, again = copy_of(replayed, tmp_path)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    wanted = json.loads(lines[2])
    lines[2] = json.dumps({**wanted, "loss": wanted["loss"] + 0.5}, sort_keys=True)
    lines[3] = lines[3].replace("0", "1")
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    [said] = compare(run, again).differences
    assert said.startswith(f"metrics.jsonl: first at step {wanted['step']}: loss was {wanted['loss'] + 0.5!r} and is ")
    assert said.endswith(", by 0.5")
    config = read_config(run)
    config["data"]["root"] = str(replayed[0].parent / "moved")
    config["cache_dir"] = str(replayed[0].parent / "other_cache")
    # A finished replay is compared, not run again.
    assert replay_run(run, config, again).differences == (said,)


def test_results_and_predictions_are_compared_to_the_bit(replayed, tmp_path):
    run, again = copy_of(replayed, tmp_path)
    change(run / "done.json", lambda value: value.update(seconds=1e6, accuracy=value["accuracy"] + 0.25))
    with np.load(run / "predictions.npz") as file:
        arrays = dict(file)
    arrays["probabilities"][3, 0] = np.nextafter(arrays["probabilities"][3, 0], np.float32(2))
    np.savez(run / "predictions.npz", **arrays)
    results, predictions = compare(run, again).differences
    assert results.startswith("done.json: accuracy was ")
    assert "by 0.25" in results
    assert predictions.startswith("predictions.npz: probabilities differ in 1 of 24 rows, by up to ")


def test_what_was_not_the_same_before_is_named(replayed, tmp_path):
    run, again = copy_of(replayed, tmp_path)

    def other_machine(starts):
        starts[-1]["packages"]["jaxlib"] = "0.1"
        starts[-1]["devices"] = ["gpu:NVIDIA X"] * 2
        starts[-1]["xla_flags"] = "--xla_x"
        starts[-1]["git_changes"] = "abc"
        starts[-1]["cpu"]["model"] = "Z80"
        starts[-1]["started"] = "long ago"

    change(run / "env.json", other_machine)
    change(run / "inputs.json", lambda value: value.update(images="others"))
    causes = compare(run, again).causes
    named = [line.split(":")[1].strip() for line in causes]
    assert named == [
        "config.cache_dir", "config.data.root", "images", "cpu.model", "devices", "git_changes", "packages.jaxlib",
        "xla_flags",
    ]  # fmt: skip
    assert any("'2 x gpu:NVIDIA X' there, '8 x cpu:cpu' now" in line for line in causes)


def test_paths_that_are_not_here_are_named(replayed, tmp_path, capsys):
    run, _ = replayed
    assert cli.main(["replay", str(run), f"--workdir={tmp_path / 'again'}"]) == 2
    err = capsys.readouterr().err
    assert f"config.data.root = '{run.parent / 'pictures'}' is not on this machine; --config.data.root=PATH" in err


def test_other_images_are_said_to_be_others(replayed, tmp_path):
    run, _ = replayed
    write_pictures(tmp_path / "pictures")
    (tmp_path / "pictures" / "dark" / "00.png").unlink()
    config = read_config(run)
    config["data"]["root"] = str(tmp_path / "pictures")
    with pytest.raises(
        ValueError, match=r"(?s)the split in .* is of 80.*not the same as when it ran:.*inputs.json: images"
    ):
        replay_run(run, config, tmp_path / "again")


def test_what_cannot_be_replayed_is_refused(replayed, tmp_path, capsys):
    run, _ = replayed
    with pytest.raises(ValueError, match="is the run itself"):
        replay_run(run, read_config(run), run)
    assert cli.main(["replay", str(tmp_path)]) == 2
    assert "has no config.json and no done.json and no env.json" in capsys.readouterr().err
