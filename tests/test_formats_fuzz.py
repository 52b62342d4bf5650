"""Damaged files of every format: an error that names file and key, or arrays as announced; see fuzz_formats.py."""

import json
import subprocess
import sys

import pytest

from tests import fuzz_formats
from tests.golden.make_torch_files import FOLDER

NAMES = (
    "model.safetensors", "model.npz", "packed.npz", "model.msgpack", "model.h5", "torch_zip.pth", "torch_legacy.pth",
    "torch_protocol4.bin", "torch_onnx_old.onnx", "torch_onnx_new.onnx",
)  # fmt: skip
# Of each format.
COUNT = 60


def test_damaged_files(tmp_path):
    """In a process of its own, which may crash, and in which nothing but the reader allocates."""
    command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz_formats", tmp_path, str(COUNT)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=FOLDER.parents[1])
    assert result.returncode == 0, result.stderr[-3000:]
    reports = {report["name"]: report for report in map(json.loads, result.stdout.splitlines())}
    assert set(reports) == set(NAMES)
    assert sum(report["files"] for report in reports.values()) >= 500
    for report in reports.values():
        # Some damage is in arrays without a checksum, or in names; most of it is found.
        assert COUNT // 2 < report["errors"] < COUNT, report


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("originals")
    return folder, fuzz_formats.originals(folder)


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files_under_checked_annotations(originals, name):
    """Few, for the checks are slow: what is in a file must not reach a function that is annotated for less."""
    folder, contents = originals
    for data in fuzz_formats.variants(name, contents[name], 30):
        (folder / name).write_bytes(data)
        fuzz_formats.examine(folder / name)


@pytest.mark.parametrize("name", NAMES)
def test_files_cut_at_many_places(originals, name):
    folder, contents = originals
    data = contents[name]
    for size in range(0, len(data), max(1, len(data) // 50)):
        (folder / name).write_bytes(data[:size])
        assert fuzz_formats.examine(folder / name).error, size
