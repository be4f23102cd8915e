"""Sets of shards for all tests, made once with the module itself."""

import os
import subprocess
import sys
import time

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
def threads_become():
    """Waits until so many threads of this process have the names of the loader's.

    A thread gives itself its name, and the system lists an ended thread for a moment longer, so a count taken at once may
    differ.
    """
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("needs /proc")

    def count():
        task = f"/proc/{os.getpid()}/task"
        names = []
        for thread in os.listdir(task):
            try:
                with open(f"{task}/{thread}/comm") as file:
                    names.append(file.read())
            except (FileNotFoundError, ProcessLookupError):
                pass
        return sum(name.startswith("loader-") for name in names)

    def wait(expected):
        end = time.monotonic() + 30
        while (now := count()) != expected and time.monotonic() < end:
            time.sleep(0.01)
        assert now == expected

    return wait
