#!/usr/bin/env python3
"""A link between two network namespaces that holds every packet back for a while.

    scripts/ranks_delay.py MILLISECONDS NAMESPACE NAMESPACE

Makes a TUN device named `delay` in each namespace and carries packets from one to the other until it is ended, also on
kernels without netem. Needs root, ip (Debian: iproute2) and /dev/net/tun. It adds about 0.15 ms to each delay, because
a process has to be woken for every packet.
"""

import collections
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

# linux/if_tun.h: the request that names a device, a device of IP packets, without a header of its own
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
# The largest packet of IP: few packets for a gradient.
MTU = 65535


def device(namespace):
    """Makes a device and moves it into a namespace. Returns the file of its packets."""
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH22x", b"delay", IFF_TUN | IFF_NO_PI))
    subprocess.run(["ip", "link", "set", "delay", "mtu", str(MTU), "netns", namespace], check=True)
    return end


def packets(end):
    """The packets that wait at an end."""
    while True:
        try:
            yield os.read(end, MTU)
        except BlockingIOError:
            return


def carry(delay, ends):
    """Carries packets in both directions, each `delay` seconds after it was read."""
    other = {ends[0]: ends[1], ends[1]: ends[0]}
    held = collections.deque()
    while True:
        wait = max(0.0, held[0][0] - time.monotonic()) if held else None
        for end in select.select(ends, [], [], wait)[0]:
            held.extend((time.monotonic() + delay, other[end], packet) for packet in packets(end))
        while held and held[0][0] <= time.monotonic():
            _, end, packet = held.popleft()
            try:
                os.write(end, packet)
            except OSError:
                pass  # lost, as on a link whose other end is down: TCP sends it again


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    carry(float(sys.argv[1]) / 1e3, [device(namespace) for namespace in sys.argv[2:]])
