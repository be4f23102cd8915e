#!/usr/bin/env python3
"""Runs exported ONNX files with ONNX Runtime and compares with paragon's own results. Depends on onnx, onnxruntime and numpy
(onnx-requirements.txt); the exit code is 1 where a file differs by more than its precision explains.

    PARAGON_ONNX_CASES=FOLDER cargo test --release --test it export_onnx::cases
    check_onnx.py FOLDER
        The test writes every network at scales 2 and 4 in every precision, with inputs of several sizes and paragon's results.
        Each file must pass the official checker, with types and shapes inferred, and run at every size. f32 must agree within
        1e-5, fp16 and bf16 by 50 dB. ONNX Runtime has no bf16 convolution for the CPU, so these files run in onnx's own
        reference evaluator, at the smallest size.

    check_onnx.py --time MODEL.safetensors [--paragon target/release/paragon] [--size 512] [--threads 2] [--runs 5]
        Exports the network, and measures ONNX Runtime on the CPU beside `paragon bench upscale`, with the same network, size
        and threads.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator

LARGEST = {"f32": 1e-5}
LEAST_DB = {"f32": 80, "fp16": 50, "bf16": 50}
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def session(path, threads=0):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def psnr(a, b):
    error = np.mean((np.clip(a, 0, 1).astype(np.float64) - np.clip(b, 0, 1)) ** 2)
    return -10 * np.log10(max(error, 1e-20))


def check_form(path):
    """Runs the official checker; returns the model."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert [i.name for i in model.graph.input] == ["input"] and [o.name for o in model.graph.output] == ["output"]
    sides = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"], sides
    keys = {p.key for p in model.metadata_props}
    assert {"network", "scale", "paragon_version"} <= keys, keys
    return model


def values(path, shape):
    return np.fromfile(path, dtype="<f4").reshape(shape)


def check_file(folder, case):
    path = folder / case["file"]
    model = check_form(path)
    sizes, evaluator = case["sizes"], "ONNX Runtime"
    try:
        opened = session(path)
        kind = TYPES[opened.get_inputs()[0].type]
        run = lambda x: opened.run(["output"], {"input": x.astype(kind)})[0]  # noqa: E731
    except Exception as error:
        if case["precision"] != "bf16" or "NOT_IMPLEMENTED" not in str(error):
            raise
        evaluator = "reference evaluator"
        sizes = sizes[:1]
        opened = ReferenceEvaluator(model)
        run = lambda x: opened.run(["output"], {"input": x})[0]  # noqa: E731
    worst, least = 0.0, np.inf
    for size in sizes:
        x = values(folder / size["input"], size["shape"])
        n, c, h, w = size["shape"]
        expected = values(folder / size["output"], [n, c, h * case["scale"], w * case["scale"]])
        found = np.asarray(run(x), dtype=np.float32)
        if found.shape != expected.shape:
            print(f"FAIL {case['file']}: {found.shape} for {expected.shape}")
            return False
        worst = max(worst, float(np.abs(found - expected).max()))
        least = min(least, psnr(found, expected))
    good = worst <= LARGEST.get(case["precision"], np.inf) and least >= LEAST_DB[case["precision"]]
    shapes = ", ".join("x".join(map(str, s["shape"])) for s in sizes)
    print(f"{'ok  ' if good else 'FAIL'} {case['file']:44} {evaluator}: at most {worst:.1e}, {least:.1f} dB ({shapes})", flush=True)
    return good


def check_all(folder):
    cases = json.loads((folder / "cases.json").read_text())
    if not cases:
        print(f"FAIL {folder}: no cases")
        return 1
    good = [check_file(folder, case) for case in cases]
    print(f"{sum(good)} of {len(good)} files agree (onnx {onnx.__version__}, ONNX Runtime {onnxruntime.__version__})")
    return 0 if all(good) else 1


def measure(a):
    with tempfile.TemporaryDirectory() as place:
        export = [a.paragon, "export", a.time, "--onnx", "--out", place, "--json"]
        written = json.loads(subprocess.run(export, check=True, capture_output=True).stdout)
        opened = session(written["files"][0]["path"], a.threads)
    x = np.random.default_rng(1).random((1, 3, a.size, a.size), dtype=np.float32)
    times = []
    for _ in range(a.runs + 1):  # the first run allocates
        start = time.perf_counter()
        opened.run(None, {"input": x})
        times.append(time.perf_counter() - start)
    theirs = sorted(times[1:])[a.runs // 2]
    net = dict(written["network"])
    bench = [a.paragon, "bench", "upscale", "--device", "cpu", "--network", net.pop("arch"), "--scale", str(net.pop("scale")), "--size", str(a.size)]
    bench += ["--threads", str(a.threads), "--pictures", str(a.runs), "--json"]
    for name, value in net.items():
        bench += ["--network-set", f"{name}={json.dumps(value).strip(chr(34))}"]
    ours = json.loads(subprocess.run(bench, check=True, capture_output=True).stdout)["seconds"]
    for name, seconds in (("paragon", ours), (f"ONNX Runtime {onnxruntime.__version__}", theirs)):
        print(f"{name:24} {seconds:8.3f} s  {a.size**2 / seconds / 1e6:7.2f} LQ megapixels/s")
    print(f"{written['network']['arch']} x{written['network']['scale']}, {a.size} x {a.size} LQ pixels, {a.threads} threads, median of {a.runs}: paragon takes {ours / theirs:.2f} of the time")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--time", metavar="MODEL")
    parser.add_argument("--paragon", default="target/release/paragon")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    a = parser.parse_args()
    if a.time:
        return measure(a)
    if not a.folder:
        parser.error("give the folder of the cases, or --time")
    return check_all(a.folder)


if __name__ == "__main__":
    sys.exit(main())
