import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open

from tests.test_features_store import change_byte, make, values
from tljax import cli
from tljax.features import open_store, writing


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(writing, "BATCHES_PER_SHARD", 2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_exported_arrays_are_those_of_the_store(tmp_path, dtype, capsys):
    make(tmp_path / "store", dtype)
    command = ["features", str(tmp_path / "store")]
    assert cli.main([*command, "--export=npy", f"--to={tmp_path / 'npy'}"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [str(tmp_path / "npy" / f"{name}.npy") for name in "ab"]
    assert cli.main([*command, "--export=safetensors", f"--to={tmp_path / 'one'}"]) == 0
    # numpy knows no bfloat16: its reader is that of Flax.
    with safe_open(tmp_path / "one" / "features.safetensors", "flax") as file:
        assert set(file.keys()) == {"a", "b"}
        for name, value in values(dtype).items():
            array = np.load(tmp_path / "npy" / f"{name}.npy")
            wanted = value.astype(np.float32) if dtype == "bfloat16" else value
            assert array.dtype == wanted.dtype
            np.testing.assert_array_equal(array, wanted)
            tensor = np.asarray(file.get_tensor(name))
            assert tensor.dtype == jnp.dtype(dtype)
            assert tensor.tobytes() == value.tobytes()
    for folder in ("npy", "one"):
        assert json.loads((tmp_path / folder / "meta.json").read_text())["num_rows"] == 23


def test_features_says_what_a_store_is_and_whether_it_is_whole(tmp_path, capsys):
    make(tmp_path)
    assert cli.main(["features", str(tmp_path), "--verify"]) == 0
    out = capsys.readouterr().out
    for part in (
        "23 in 3 shards of 8, 598 bytes",
        "a  3 float16: 3 numbers, 138 bytes",
        "b  2 x 5 float16: 10 numbers, 460 bytes",
        "params: abc",
        "preprocess: mean [0.5, 0.25], size 224",
        "state     complete",
        "verified  6 files hold what was written",
    ):
        assert part in out
    change_byte(tmp_path / "a.00002.npy", -1)
    assert cli.main(["features", str(tmp_path), "--verify"]) == 2
    assert "1 files of" in (err := capsys.readouterr().err)
    assert "do not hold what was written: a.00002.npy; delete them and extract again" in err
    assert cli.main(["features", str(tmp_path), "--export=npy", f"--to={tmp_path / 'to'}"]) == 2
    assert "a.00002.npy is damaged" in capsys.readouterr().err
    (tmp_path / "a.00002.npy").unlink()
    assert cli.main(["features", str(tmp_path)]) == 0
    assert "1 shards are not there or not whole: [2]" in capsys.readouterr().out
    with pytest.raises(ValueError, match="incomplete"):
        open_store(tmp_path).read("a")


def test_wrong_calls_are_named(tmp_path, capsys):
    make(tmp_path / "store")
    command = ["features", str(tmp_path / "store")]
    for arguments, message in (
        (["features", str(tmp_path)], "no feature store in"),
        ([*command, "--export=npy"], "--export and --to go together"),
        ([*command, "--export=np", f"--to={tmp_path / 'to'}"], "no format 'np' (did you mean 'npy'?)"),
        ([*command, "--export=npy", f"--to={tmp_path}"], "a folder that is not empty"),
    ):
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "to").exists()
