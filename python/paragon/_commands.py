"""What is done by the command in a process of its own: Ctrl-C then acts as in a terminal (a set that
is being made keeps what is done), and no thread of the command is in the caller's process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Iterable, Optional, Union

from . import _paragon

Folder = Union[str, "os.PathLike[str]"]

# Finds this very package, whatever the caller's directory and search path are.
_START = "import sys; sys.path[0] = sys.argv.pop(1); from paragon.__main__ import main; main()"


def _run(words: list[str], quiet: bool) -> tuple[int, str, str]:
    """Runs the command; returns exit code, stdout and stderr, which is also shown."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    process = subprocess.Popen(
        [sys.executable, "-c", _START, package, *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace",
    )
    said = []
    with process:
        try:
            # All of stdout is one JSON document at the end, so stderr can be read first.
            for line in process.stderr:
                said.append(line)
                if not quiet and not line.startswith("error: "):
                    sys.stderr.write(line)
            out = process.stdout.read()
        except BaseException:
            # Ctrl-C has reached the command as well: it ends by itself.
            process.wait()
            raise
    return process.returncode, out, "".join(said)


def _report(words: list[str], quiet: bool, accepted: tuple[int, ...] = (0,)) -> Any:
    """Runs a command that prints JSON; raises what it says if it fails."""
    code, out, said = _run(words, quiet)
    if code in accepted and out.strip():
        return json.loads(out)
    errors = [line[len("error: "):] for line in said.splitlines() if line.startswith("error: ")]
    text = errors[-1] if errors else said.strip() or f"`paragon {words[0]}` ended with code {code}"
    if code == 2:
        raise ValueError(text)
    raise _paragon.Error(text)


def shard(
    dataset: Union[Folder, Iterable[Folder]],
    out: Folder = "shards",
    *,
    scale: Optional[int] = None,
    lq_size: Optional[int] = None,
    margin: Optional[int] = None,
    stride: Optional[int] = None,
    hr: Optional[Folder] = None,
    lq: Optional[Folder] = None,
    lq_filter: Optional[str] = None,
    lq_blur: Optional[float] = None,
    min_detail: Optional[float] = None,
    keep_duplicates: bool = False,
    val: Union[int, float, str, None] = None,
    append: bool = False,
    overwrite: bool = False,
    seed: Optional[int] = None,
    codec: Optional[str] = None,
    threads: Optional[int] = None,
    shard_size: Optional[int] = None,
    host_memory: Union[int, str, None] = None,
    max_megapixels: Optional[int] = None,
    dry_run: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Cuts a folder of photographs into a set of LQ/HR pairs.

    The arguments are the options of `paragon shard`, which `paragon shard --help` explains. Returns
    the report of `--json`. What the command says goes to `sys.stderr`, unless `quiet`.

    An interrupted call (Ctrl-C) keeps what is done; the same call goes on there.
    """
    one = isinstance(dataset, (str, os.PathLike))
    words = ["shard", "--json", "--out", os.fspath(out)]
    valued = {
        "scale": scale, "lq-size": lq_size, "margin": margin, "stride": stride, "lq-filter": lq_filter,
        "lq-blur": lq_blur, "min-detail": min_detail, "val": val, "seed": seed, "codec": codec,
        "threads": threads, "shard-size": shard_size, "host-memory": host_memory,
        "max-megapixels": max_megapixels, "hr": None if hr is None else os.fspath(hr),
        "lq": None if lq is None else os.fspath(lq),
    }
    for name, value in valued.items():
        if value is not None:
            words.append(f"--{name}={value}")
    switches = {"keep-duplicates": keep_duplicates, "append": append, "overwrite": overwrite, "dry-run": dry_run}
    words += [f"--{name}" for name, wanted in switches.items() if wanted]
    words += ["--", *map(os.fspath, [dataset] if one else dataset)]
    return _report(words, quiet)


class ShardSet(_paragon.ShardSet):
    """A finished set of shards: `set[i]` is the pair `(lq, hr)` of record `i` as it was stored, uint8
    `[H, W, 3]`; `len(set)` is the number of pairs.

    Threads and processes may share it; it can be pickled.
    """

    def __reduce__(self):
        return (type(self), (os.fspath(self.folder),))

    def verify(self, threads: Optional[int] = None) -> dict[str, Any]:
        """Decodes every pair and checks every checksum, also of held-out images below the set.

        Returns `{"pairs", "damaged", "unreadable", "unchecked"}`; the lists are empty if the set is
        whole, and otherwise name shard, record and image of every damage.
        """
        words = ["shards", "verify", "--json"]
        if threads is not None:
            words.append(f"--threads={threads}")
        return _report([*words, "--", os.fspath(self.folder)], quiet=True, accepted=(0, 1))
