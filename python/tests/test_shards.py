"""Making, reading and checking sets, and the command of the wheel."""

import os
import pickle
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import paragon
from conftest import command


def test_a_set_is_made_and_read(photos, tmp_path):
    report = paragon.shard([photos], out=tmp_path / "set", scale=2, lq_size=16, codec="raw", quiet=True)
    assert report["pairs"] == 72
    pairs = paragon.ShardSet(tmp_path / "set")
    assert (len(pairs), pairs.scale, pairs.lq_size) == (72, 2, 16)
    lq, hr = pairs[0]
    assert lq.shape == (16, 16, 3) and hr.shape == (32, 32, 3) and hr.dtype == "uint8"
    image, x, y = pairs.source(0)
    assert (image, x, y) == ("000000", 0, 0)
    assert sum(count for _, count in pairs.images()) == 72 and len(pairs.images()) == 12
    assert np.array_equal(np.asarray(pairs[-1][1]), np.asarray(pairs[71][1]))
    for index in (72, -73):
        with pytest.raises(IndexError, match="holds 72"):
            pairs[index]
    again = pickle.loads(pickle.dumps(pairs))
    assert again.fingerprint == pairs.fingerprint
    assert pairs.verify() == {"pairs": 72, "damaged": [], "unreadable": [], "unchecked": 0}
    assert sum(1 for _ in pairs) == 72


def test_pairs_are_those_of_the_command(shards, tmp_path):
    image = pytest.importorskip("PIL.Image")
    done = command("shards", "extract", shards, "--record", 7, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    lq, hr = map(np.asarray, paragon.ShardSet(shards)[7])
    files = {name.shape: name for name in (np.asarray(image.open(file)) for file in tmp_path.rglob("*.png"))}
    assert np.array_equal(files[lq.shape], lq) and np.array_equal(files[hr.shape], hr)


def test_memory_of_a_pair_outlives_the_set(shards):
    pairs = paragon.ShardSet(shards)
    view = np.asarray(pairs[3][1])
    copy = view.copy()
    del pairs
    others = [np.asarray(paragon.ShardSet(shards)[n][1]) for n in range(20)]
    assert np.array_equal(view, copy) and len(others) == 20


def test_errors_say_what_the_command_says(photos, tmp_path):
    with pytest.raises(ValueError, match="--scale"):
        paragon.shard(photos, out=tmp_path / "set", scale="two", quiet=True)
    with pytest.raises(paragon.Error, match="nowhere"):
        paragon.shard(tmp_path / "nowhere", out=tmp_path / "set", quiet=True)
    with pytest.raises(FileNotFoundError, match="none"):
        paragon.ShardSet(tmp_path / "none")
    assert not (tmp_path / "set").exists()


def test_the_command_is_installed(shards):
    done = command("--version")
    assert done.stdout == f"paragon {paragon.__version__}\n" and done.returncode == 0
    done = command("shards", "verify", shards)
    assert done.returncode == 0 and "72 pairs, no damage" in done.stdout
    done = command("shards", "verify", "nowhere")
    assert done.returncode == 1 and done.stderr.startswith("error: ")
    done = command("shrad")
    assert done.returncode == 2 and "Usage: paragon" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_ends_the_command_as_in_the_program(shards):
    words = [sys.executable, "-m", "paragon", "bench", "loader", "--shards", str(shards), "--seconds", "60", "--network", "none"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        process.stderr.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == -signal.SIGINT


def test_the_module_does_not_import_numpy_or_torch():
    code = "import sys, paragon; assert not {'numpy', 'torch'} & set(sys.modules), sys.modules"
    # -S would hide the package, so only the environment's start files are left out
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONSTARTUP": ""})
    assert done.returncode == 0, done.stderr
