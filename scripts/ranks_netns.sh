#!/usr/bin/env bash
# Two ranks on two hosts, played by network namespaces: as fast as the machine, with 1 ms of delay each way, and
# with a link that is cut. Needs root, ip and tc (Debian: iproute2) and MPICH, whose launcher can be told how to
# reach a host without a daemon.
#
#   scripts/ranks_netns.sh target/release/paragon SHARDS
#
# Checks that the networks are the bits of one process, and that both ranks end after the cut.
set -euo pipefail
paragon=$(realpath "${1:?the program}") shards=$(realpath "${2:?a set of shards}")
mpirun=${MPIRUN:-$(command -v mpirun.mpich || command -v mpiexec.hydra || true)}
[ -n "$mpirun" ] || { echo "SKIP: mpirun of MPICH is not installed"; exit 0; }
ip netns add paragon0 2>/dev/null || { echo "SKIP: network namespaces cannot be made here (root is needed)"; exit 0; }
temporary=$(mktemp -d)
cleanup() {
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
  ip -n "paragon$host" link set "veth$host" up
  ip -n "paragon$host" link set lo up
done
# The launcher reaches a host by this program in place of ssh: HOST WORDS...
cat >"$temporary/enter" <<'ENTER'
#!/bin/sh
while [ "${1#-}" != "$1" ]; do shift; done
host=$1
shift
case $host in 10.123.0.1) space=paragon0 ;; *) space=paragon1 ;; esac
exec ip netns exec "$space" unshare --uts sh -c "hostname $space; $*"
ENTER
chmod +x "$temporary/enter"
words() { # NAME ITERATIONS
  echo "$paragon" train --shards "$shards" --out "$temporary/$1" --network nano --batch-size 1 --lq-size 16 \
    --accum-iter 2 --iterations "$2" --log-every 10 --checkpoint-every 10 --val none --threads 1 --rank-timeout 10
}
ranks() {
  # MPICH over UCX may report an error at its end, when everything is saved
  ip netns exec paragon0 "$mpirun" -launcher ssh -launcher-exec "$temporary/enter" -hosts 10.123.0.1,10.123.0.2 \
    -iface veth0 -n 2 "$@"
}
state() { find "$temporary/$1/states" -type f | sort | tail -n 1; }
"$paragon" --version
# shellcheck disable=SC2046
$(words alone 40) >"$temporary/alone.txt" 2>&1
# shellcheck disable=SC2046
ranks $(words near 40) >"$temporary/near.txt" 2>&1 || grep -q "done at iteration" "$temporary/near.txt" || { cat "$temporary/near.txt"; exit 1; }
cmp "$(state alone)" "$(state near)" && echo "two hosts: the bits of one process"
runs=(near)
if tc -n paragon0 qdisc add dev veth0 root netem delay 1ms 2>/dev/null; then
  tc -n paragon1 qdisc add dev veth1 root netem delay 1ms
  runs+=(far)
  # shellcheck disable=SC2046
  ranks $(words far 40) >"$temporary/far.txt" 2>&1 || grep -q "done at iteration" "$temporary/far.txt" || { cat "$temporary/far.txt"; exit 1; }
  cmp "$(state alone)" "$(state far)" && echo "with 1 ms of delay each way: the same bits"
else
  echo "SKIP: no delay, because this kernel has no netem"
fi
for run in "${runs[@]}"; do
  tail -n 1 "$temporary/$run/log.jsonl" | sed -E 's/.*("ranks":\{[^}]*\}).*/'"$run"': \1/'
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
