#!/usr/bin/env bash
# What ranks cost: Nano, LQ 128, batch 16, an iteration of two micro-batches, on two ranks of one core each and
# on one process with two threads. Needs two quiet cores, an MPI with mpirun, and a set of shards with LQ 128.
#
#   scripts/ranks_cost.sh target/release/paragon SHARDS [ITERATIONS]
#
# Prints milliseconds of an iteration: all of it, computing, packing (copying and adding gradients), exchanging
# (the messages), waiting for the slower rank. The first log line is left out: the loader starts in it.
set -euo pipefail
paragon=${1:?the program} shards=${2:?a set of shards} iterations=${3:-60}
mpirun=${MPIRUN:-$(command -v mpirun.openmpi || command -v mpirun)}
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

run() { # NAME THREADS [LAUNCHER ...]
  local name=$1 threads=$2
  shift 2
  "$@" "$paragon" train --shards "$shards" --out "$temporary/$name" --network nano --lq-size 128 --batch-size 16 \
    --accum-iter 2 --iterations "$iterations" --log-every $((iterations / 6)) --checkpoint-every 1000000 \
    --val none --threads "$threads" --quiet >"$temporary/$name.txt" 2>&1 || { cat "$temporary/$name.txt" >&2; exit 1; }
}

# in turns, so that a change of the machine's speed meets both
for round in 1 2 3; do
  run "threads$round" 2 taskset -c 0,1
  case $("$mpirun" --version 2>&1) in
    *"Open MPI"* | *OpenRTE*) run "ranks$round" 1 "$mpirun" --oversubscribe --bind-to core -n 2 ;;
    *) run "ranks$round" 1 "$mpirun" -bind-to core -n 2 ;;
  esac
done
python3 - "$temporary" <<'PYTHON'
import json, pathlib, statistics, sys
folder = pathlib.Path(sys.argv[1])
def lines(kind):
    for log in sorted(folder.glob(f"{kind}[0-9]/log.jsonl")):
        yield from [json.loads(line) for line in log.read_text().splitlines()][1:]
def median(values):
    return statistics.median(list(values))
time = {kind: median(1e3 / line["it_per_s"] for line in lines(kind)) for kind in ("threads", "ranks")}
ranks = [line | line["ranks"] for line in lines("ranks")]
packing, exchanging = median(r["packing_ms"] for r in ranks), median(r["exchange_ms"] for r in ranks)
waiting = median(r["gradient_wait"] * 1e3 / r["it_per_s"] for r in ranks)
loading = median(r["data_wait"] * 1e3 / r["it_per_s"] for r in ranks)
print(f"one process, 2 threads   {time['threads']:8.2f} ms an iteration")
print(f"2 ranks, 1 thread each   {time['ranks']:8.2f} ms ({100 * (time['ranks'] / time['threads'] - 1):+.1f} %)")
print(f"  packing                {packing:8.3f} ms")
print(f"  exchanging             {exchanging:8.3f} ms")
print(f"  computing and the rest {time['ranks'] - packing - exchanging:8.2f} ms, of which the slower rank lets the other wait {waiting:.2f} ms")
print(f"  waiting for data       {loading:8.2f} ms at most")
PYTHON
