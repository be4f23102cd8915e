#!/usr/bin/env bash
# What ranks cost: Nano, LQ 128, batch 16, an iteration of two micro-batches, on two ranks of one core each and
# on one process with two threads. Needs two quiet cores, an MPI with mpirun, and a set of shards with LQ 128.
#
#   scripts/ranks_cost.sh target/release/paragon SHARDS [ITERATIONS]
#
# Prints milliseconds of an iteration (medians of the log lines): all of it, and for the ranks computing, packing
# (copying and adding gradients) and exchanging (the messages); and the ratio of ranks to threads, the median and the
# range of three pairs of runs that alternate. The first log line of a run is left out: the loader starts in it.
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

version=$("$mpirun" --version 2>&1 || true)
case $(basename "$mpirun")$version in
  torchrun*) ranks=("$mpirun" --standalone --nproc-per-node 2 --no-python) ;;
  *"Open MPI"* | *OpenRTE*) ranks=("$mpirun" --oversubscribe --bind-to core -n 2) ;;
  *) ranks=("$mpirun" -bind-to core -n 2) ;;
esac
# In turns and in both orders, so that a change of the machine's speed meets both.
for round in 1 2 3; do
  if [ $((round % 2)) = 1 ]; then
    run "threads$round" 2 taskset -c 0,1
    run "ranks$round" 1 "${ranks[@]}"
  else
    run "ranks$round" 1 "${ranks[@]}"
    run "threads$round" 2 taskset -c 0,1
  fi
done
python3 - "$temporary" <<'PYTHON'
import json, pathlib, statistics, sys
folder = pathlib.Path(sys.argv[1])
def lines(name):
    for log in sorted(folder.glob(f"{name}/log.jsonl")):
        yield from [json.loads(line) for line in log.read_text().splitlines()][1:]
def median(values):
    return statistics.median(list(values))
def time(name):
    return median(1e3 / line["it_per_s"] for line in lines(name))
threads, both = time("threads[0-9]"), time("ranks[0-9]")
ratios = [time(f"ranks{number}") / time(f"threads{number}") for number in (1, 2, 3)]
ranks = [line | line["ranks"] for line in lines("ranks[0-9]")]
packing, exchanging = median(r["packing_ms"] for r in ranks), median(r["exchange_ms"] for r in ranks)
waiting = median(r["gradient_wait"] * 1e3 / r["it_per_s"] for r in ranks)
loading = median(r["data_wait"] * 1e3 / r["it_per_s"] for r in ranks)
print(f"one process, 2 threads   {threads:8.2f} ms an iteration")
print(f"2 ranks, 1 thread each   {both:8.2f} ms an iteration")
print(f"  computing and the rest {both - packing - exchanging:8.2f} ms at the slower rank, which lets the other wait {waiting:.2f} ms")
print(f"  packing                {packing:8.3f} ms")
print(f"  exchanging             {exchanging:8.3f} ms")
print(f"  waiting for data       {loading:8.2f} ms at most, within computing")
print(f"ranks to threads         {median(ratios):8.3f}, of three pairs {min(ratios):.3f} to {max(ratios):.3f}")
PYTHON
