#!/usr/bin/env python3
"""Reads a run's event files with TensorBoard's own reader and compares them with log.jsonl. Needs `pip install tensorboard`.

    check_tensorboard.py RUN
"""
import json
import pathlib
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    run = pathlib.Path(sys.argv[1])
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    compared = 0
    for tag, key in [("train/loss", "loss"), ("train/lr", "lr"), ("val/psnr_y", "val_psnr_y"), ("val/ssim_y", "val_ssim_y")]:
        written = {line["iteration"]: line[key] for line in lines if line.get(key) is not None}
        read = {event.step: event.value for event in events.Scalars(tag)}
        if written.keys() != read.keys():
            sys.exit(f"{tag}: iterations {sorted(read)} for {sorted(written)}")
        for step, value in written.items():
            if abs(read[step] - value) > 1e-6 * abs(value):
                sys.exit(f"{tag} at {step}: {read[step]} for {value}")
            compared += 1
    print(f"{compared} values agree")


if __name__ == "__main__":
    main()
