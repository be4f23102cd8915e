#!/usr/bin/env bash
# Two ranks on two hosts, played by network namespaces: as fast as the machine, with every packet held back for 0 ms
# and for 1 ms (ranks_delay.py), and with a link that is cut. Needs root, ip (Debian: iproute2), /dev/net/tun and MPICH,
# whose launcher can be told how to reach a host without a daemon.
#
#   scripts/ranks_netns.sh target/release/paragon SHARDS
#
# Checks that the networks are the bits of one process, and that both ranks end after the cut. Prints the time of an
# iteration, the median of the log lines.
set -euo pipefail
paragon=$(realpath "${1:?the program}") shards=$(realpath "${2:?a set of shards}")
mpirun=${MPIRUN:-$(command -v mpirun.mpich || command -v mpiexec.hydra || true)}
[ -n "$mpirun" ] || { echo "SKIP: mpirun of MPICH is not installed"; exit 0; }
ip netns add paragon0 2>/dev/null || { echo "SKIP: network namespaces cannot be made here (root is needed)"; exit 0; }
temporary=$(mktemp -d)
here=$(dirname "$(realpath "$0")")
link=
cleanup() {
  [ -z "$link" ] || kill "$link" 2>/dev/null || true
  for host in 0 1; do
    ip netns pids "paragon$host" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns del "paragon$host" 2>/dev/null || true
  done
  rm -rf "$temporary"
}
trap cleanup EXIT
# The two hosts are one machine, whose memory MPI would use in place of the network.
export UCX_TLS=tcp,self FI_PROVIDER=tcp
ip netns add paragon1
ip link add veth0 netns paragon0 type veth peer name veth1 netns paragon1
for host in 0 1; do
  ip -n "paragon$host" addr add "10.123.0.$((host + 1))/24" dev "veth$host"
  ip -n "paragon$host" link set lo up
done
# Sets the direct link up; MPI takes no link that is not up yet.
direct_up() {
  for host in 0 1; do ip -n "paragon$host" link set "veth$host" up; done
  for host in 0 1; do
    until ip -n "paragon$host" link show "veth$host" | grep -q "state UP"; do sleep 0.05; done
  done
}
direct_up
# The launcher reaches a host by this program in place of ssh: HOST WORDS...
cat >"$temporary/enter" <<'ENTER'
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
case $host in 10.123.*.1) space=paragon0 ;; *) space=paragon1 ;; esac
exec ip netns exec "$space" unshare --uts sh -c "hostname $space; $*"
ENTER
chmod +x "$temporary/enter"
words() { # NAME ITERATIONS
  echo "$paragon" train --shards "$shards" --out "$temporary/$1" --network nano --batch-size 1 --lq-size 16 \
    --accum-iter 2 --iterations "$2" --log-every 10 --checkpoint-every 10 --val none --threads 1 --rank-timeout 10
}
network=0 interface=veth0 # of the ranks
ranks() {
  # MPICH over UCX may report an error at its end, when everything is saved
  ip netns exec paragon0 "$mpirun" -launcher ssh -launcher-exec "$temporary/enter" \
    -hosts "10.123.$network.1,10.123.$network.2" -iface "$interface" -n 2 "$@"
}
# A run whose network has to be that of one process.
same() { # NAME WHAT
  # shellcheck disable=SC2046
  ranks $(words "$1" "$iterations") >"$temporary/$1.txt" 2>&1 || grep -q "done at iteration" "$temporary/$1.txt" ||
    { cat "$temporary/$1.txt"; exit 1; }
  cmp "$(state alone)" "$(state "$1")" && echo "$2: the bits of one process"
}
# A link that holds packets back, in place of the one that is as fast as the machine.
delayed() { # MILLISECONDS
  python3 "$here/ranks_delay.py" "$1" paragon0 paragon1 &
  link=$!
  for host in 0 1; do
    until ip -n "paragon$host" link show delay >/dev/null 2>&1; do
      kill -0 "$link" 2>/dev/null || return 1
      sleep 0.1
    done
    ip -n "paragon$host" addr add "10.123.1.$((host + 1))/24" dev delay
    ip -n "paragon$host" link set delay up
    ip -n "paragon$host" link set "veth$host" down
  done
  network=1 interface=delay
}
direct() {
  kill "$link"
  wait "$link" 2>/dev/null || true
  link=
  direct_up
  network=0 interface=veth0
}
state() { find "$temporary/$1/states" -type f | sort | tail -n 1; }
iterations=60
"$paragon" --version
# shellcheck disable=SC2046
$(words alone "$iterations") >"$temporary/alone.txt" 2>&1
same near "two hosts"
runs=(alone near)
for milliseconds in 0 1; do
  if delayed "$milliseconds"; then
    runs+=("held$milliseconds")
    same "held$milliseconds" "every packet held back for $milliseconds ms"
    direct
  else
    echo "SKIP: packets are not held back, because there is no TUN device here"
    link=
    break
  fi
done
for run in "${runs[@]}"; do
  # the loader and the connections start in the first line
  python3 - "$run" "$temporary/$run/log.jsonl" <<'PYTHON'
import json, statistics, sys
lines = [json.loads(line) for line in open(sys.argv[2])][1:]
middle = lambda value: statistics.median(value(line) for line in lines)
text = f"{sys.argv[1]:<6} {middle(lambda line: 1e3 / line['it_per_s']):8.2f} ms an iteration"
if "ranks" in lines[0]:
    text += f", of which {middle(lambda line: line['ranks']['exchange_ms']):.2f} ms for the messages"
print(text)
PYTHON
done
# shellcheck disable=SC2046
ranks $(words cut 1000000) >"$temporary/cut.txt" 2>&1 &
job=$!
until [ -n "$(state cut 2>/dev/null)" ]; do sleep 0.1; done
began=$SECONDS
ip -n paragon1 link set veth1 down
# The launcher itself may wait for a host that it cannot reach any more: the ranks count.
left() { for host in 0 1; do ip netns pids "paragon$host" | xargs -r -n1 ps -o comm= -p | grep -cx "$(basename "$paragon" | cut -c 1-15)" || true; done | paste -sd ' '; }
while [ "$(left)" != "0 0" ]; do
  [ $((SECONDS - began)) -lt 60 ] || { echo "ranks are left after 60 s, on the two hosts: $(left)"; cat "$temporary/cut.txt"; exit 1; }
  sleep 0.2
done
echo "both ranks ended $((SECONDS - began)) s after the cut (--rank-timeout 10)"
grep -h "nothing was heard" "$temporary/cut.txt"
kill "$job" 2>/dev/null || true
