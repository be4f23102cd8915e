"""Sets of shards for all tests, made once with the module itself."""

import os
import subprocess
import sys

import pytest

import paragon


def command(*words):
    """Runs the command of the module; returns its finished process."""
    return subprocess.run([sys.executable, "-m", "paragon", *map(str, words)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Twelve images of 96 x 64 pixels."""
    folder = tmp_path_factory.mktemp("photos")
    done = command("synth", folder / "images", "--count", 12, "--size", "96x64")
    assert done.returncode == 0, done.stderr
    return folder / "images"


@pytest.fixture(scope="session")
def shards(photos, tmp_path_factory):
    """72 pairs x2 of LQ 16."""
    folder = tmp_path_factory.mktemp("set") / "shards"
    paragon.shard(photos, out=folder, scale=2, lq_size=16, quiet=True)
    return folder


@pytest.fixture
def threads_now():
    """Counts the threads of this process that have the names of the loader's."""
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("needs /proc")

    def count():
        task = f"/proc/{os.getpid()}/task"
        names = []
        for thread in os.listdir(task):
            try:
                with open(f"{task}/{thread}/comm") as file:
                    names.append(file.read())
            except FileNotFoundError:
                pass
        return sum(name.startswith("loader-") for name in names)

    return count
