"""Checks the PyTorch networks against golden numbers: output, L1 loss and every gradient, in float64 and in float32, for SPAN
also both forms of its convolutions and the composed tensors in the file, and for Photo and Pro every form of attention. Depends on
torch and safetensors.
"""

from pathlib import Path

import torch
from safetensors import safe_open

from peers.cases import CASES
from peers.networks import ATTENTION, Conv3XC, build

# (output, gradients), relative L2: what the golden files' own float32 storage leaves, and what float32 arithmetic leaves
LIMITS = {torch.float64: (1e-6, 1e-6), torch.float32: (2e-6, 2e-5)}
# name in a file -> key of `cases.CASES`
NAMES = {"paragonsr2_realtime": "nano", "paragonsr2_stream": "stream", "paragonsr2_photo": "photo", "paragonsr2_pro": "pro",
         "compact": "compact", "span": "span"}  # fmt: skip
# This gradient is zero in exact arithmetic: the bias adds one number to all scores of a pixel. What is stored is rounding error.
WITHOUT_GRADIENT = "token_ca.k_proj.bias"


def error(a, b):
    """||a - b|| / ||b||"""
    a, b = a.detach().double(), b.double()
    return float((a - b).norm() / b.norm().clamp_min(1e-300))


def check_file(path, name, meta, dtype, **form):
    """Prints a line; true if the file's numbers are met."""
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    if name == "span":
        form["norm"] = "param.no_norm" not in tensors
    sizes = {ours: int(meta[theirs]) for theirs, ours in (("feat", "features"), ("conv", "convolutions")) if theirs in meta}
    net = build(name, int(meta["scale"]), **sizes, **form)
    net.load_state_dict({key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")})
    net.to(dtype).train()
    x = tensors["input"].to(dtype).requires_grad_()
    y = net(x)
    loss = (y - tensors["target"].to(dtype)).abs().mean()
    loss.backward()
    outputs = [error(y, tensors["output"])]
    gradients = {"input": error(x.grad, tensors["grad_input"])}
    for parameter, p in net.named_parameters():
        if p.requires_grad and not parameter.endswith(WITHOUT_GRADIENT):
            gradients[parameter] = error(p.grad, tensors["grad." + parameter])
    stored = [(n, m) for n, m in net.named_modules() if isinstance(m, Conv3XC)]
    if stored:
        net.eval()
        outputs.append(error(net(x), tensors["output"]))
        outputs += [error(m.eval_conv.weight, tensors[f"param.{n}.eval_conv.weight"]) for n, m in stored]
    worst = max(gradients, key=gradients.get)
    off = abs(float(loss.detach()) / float(tensors["loss.l1"]) - 1)
    good = max(outputs) <= LIMITS[dtype][0] and gradients[worst] <= LIMITS[dtype][1] and off <= 1e-6
    kind = str(dtype).split(".")[1] + (", composed" if form.get("composed") else "")
    kind += f", {form['attention']}" if "attention" in form else ""
    print(f"{'ok  ' if good else 'FAIL'} {path.name:34} {kind}: output {max(outputs):.1e}  l1 {off:.1e}  "
          f"worst gradient {gradients[worst]:.1e} ({worst})")  # fmt: skip
    return good


def check(folder, wanted):
    """Checks the networks of `wanted` against every golden file in `folder`. Returns the number of failures; None without files."""
    torch.set_num_threads(1)  # the tensors are tiny
    count, failed = 0, 0
    for path in sorted(Path(folder).glob("*_x*_*x*x*.safetensors")):
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        name = NAMES.get(meta["arch"])
        if name not in wanted:
            continue
        forms = [{}, {"composed": True}] if name == "span" else [{}]
        if CASES[name].attention:
            forms = [{"attention": attention} for attention in ATTENTION]
        for dtype in LIMITS:
            for form in forms:
                count += 1
                failed += not check_file(path, name, meta, dtype, **form)
    return failed if count else None
