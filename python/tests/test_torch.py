"""PyTorch: tensors without a copy, the dataset for DataLoader, and the script of the documentation."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

import paragon

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader  # noqa: E402

from paragon.torch import PairedDataset, to_device  # noqa: E402


def dataset(shards, batch_size=4, **options):
    return PairedDataset(shards, batch_size, quiet=True, threads=2, **options)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_are_the_scaled_records(shards, layout, dtype):
    pairs = paragon.ShardSet(shards)
    loader = paragon.Loader(shards, 4, layout=layout, dtype=dtype, augment=False, quiet=True)
    for batch in loader:
        for tensor, side in zip(batch.torch(), (0, 1)):
            assert tensor.dtype == dtype and tensor.is_contiguous()
            for n, record in enumerate(batch.records):
                expected = pairs[record][side].torch()
                if layout == "NCHW":
                    expected = expected.permute(2, 0, 1)
                if dtype != torch.uint8:
                    expected = (expected.float() / 255).to(dtype)
                assert torch.equal(tensor[n], expected)


def test_a_tensor_shares_the_memory_and_keeps_it(shards):
    stream = iter(paragon.Loader(shards, 4, slots=3, endless=True, quiet=True))
    batch = next(stream)
    tensor = batch.hr.torch()
    assert tensor.data_ptr() == batch.hr.numpy().ctypes.data
    copy = tensor.clone()
    del batch
    for _ in range(50):
        next(stream)
    del stream
    assert torch.equal(tensor, copy)
    moved = to_device(next(iter(paragon.Loader(shards, 4, quiet=True))), "cpu")
    assert moved[0].shape == (4, 3, 16, 16) and moved[1].shape == (4, 3, 32, 32)


def test_the_dicts_are_those_of_the_trainers(shards):
    pairs = paragon.ShardSet(shards)
    loader = DataLoader(dataset(shards), batch_size=None, num_workers=0)
    count = 0
    for data in loader:
        assert set(data) == {"lq", "gt", "lq_path", "gt_path"}
        assert data["lq"].shape == (4, 3, 16, 16) and data["gt"].shape == (4, 3, 32, 32)
        assert data["gt"].dtype == torch.float32 and 0 <= data["gt"].min() and data["gt"].max() <= 1
        assert len(data["lq_path"]) == 4 and data["gt_path"][0].startswith("0000")
        count += 1
    assert count == len(loader) == 18
    names = {name for name, _ in pairs.images()}
    assert set(data["gt_path"]) <= names


def test_two_slots_are_enough_for_a_loop(shards):
    # one is held by the loop and one is filled: nothing else may keep a batch
    loader = DataLoader(dataset(shards, slots=2), batch_size=None, num_workers=0)
    assert sum(1 for _ in loader) == 18


def test_a_state_in_the_middle_of_an_epoch(shards):
    one = dataset(shards, seed=3)
    stream = iter(DataLoader(one, batch_size=None, num_workers=0))
    for _ in range(5):
        next(stream)
    state = one.state_dict()
    expected = [data["gt"].clone() for data in stream]
    other = dataset(shards, seed=3)
    other.load_state_dict(state)
    found = [data["gt"].clone() for data in DataLoader(other, batch_size=None, num_workers=0)]
    assert len(found) == 13 and all(map(torch.equal, found, expected))


def test_workers_are_refused_with_a_sentence(shards):
    loader = DataLoader(dataset(shards), batch_size=None, num_workers=1)
    with pytest.raises(RuntimeError, match="num_workers=0"):
        next(iter(loader))


def test_ranks_come_from_torch_distributed(shards, tmp_path):
    if not torch.distributed.is_available():
        pytest.skip("torch has no distributed")
    script = tmp_path / "rank.py"
    script.write_text(f"""
import sys, torch
import torch.distributed as dist
from paragon.torch import PairedDataset
dist.init_process_group("gloo", init_method="file://{tmp_path}/meet", rank=int(sys.argv[1]), world_size=2)
dataset = PairedDataset({str(shards)!r}, 4, seed=5, quiet=True)
print([batch.records for batch in dataset.loader])
dist.destroy_process_group()
""")
    ranks = [subprocess.Popen([sys.executable, script, str(rank)], stdout=subprocess.PIPE, text=True) for rank in range(2)]
    records = [eval(process.communicate(timeout=120)[0]) for process in ranks]
    alone = [batch.records for batch in paragon.Loader(shards, 8, seed=5, quiet=True)]
    assert [[records[i % 2][n][i // 2] for i in range(8)] for n in range(len(alone))] == alone


def test_pinned_memory_needs_cuda(shards):
    if torch.cuda.is_available():
        batch = next(iter(paragon.Loader(shards, 4, pin_memory=True, quiet=True)))
        assert batch.hr.torch().is_pinned()
        lq, hr = to_device(batch, "cuda")
        torch.cuda.synchronize()
        assert torch.equal(hr.cpu(), batch.hr.torch()) and lq.is_cuda
    else:
        with pytest.raises(ValueError, match="needs CUDA"):
            paragon.Loader(shards, 4, pin_memory=True, quiet=True)


def test_the_training_script_of_the_documentation_runs(photos, tmp_path):
    page = pathlib.Path(__file__).parents[2] / "docs" / "python.md"
    scripts = re.findall(r"```python\n(# train\.py.*?)```", page.read_text(), re.DOTALL)
    assert len(scripts) == 1 and len(scripts[0].splitlines()) <= 32
    (tmp_path / "train.py").write_text(scripts[0])
    shutil.copytree(photos, tmp_path / "photos")
    environment = {**os.environ, "LQ_SIZE": "16", "EPOCHS": "1"}
    done = subprocess.run([sys.executable, "train.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    losses = [float(line.rsplit(" ", 1)[1]) for line in done.stdout.splitlines() if "loss" in line]
    assert losses and np.isfinite(losses).all() and (tmp_path / "network.pt").exists()
