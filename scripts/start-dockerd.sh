#!/bin/sh
# Start a Docker daemon when none answers; do nothing when one does. For CI machines and containers without systemd.
# Log: $DOCKERD_LOG (default /var/log/dockerd.log).
set -eu

answers() { docker info >/dev/null 2>&1; }

answers && exit 0
log=${DOCKERD_LOG:-/var/log/dockerd.log}
if ! command -v dockerd >/dev/null; then
    echo "dockerd is not installed: apt-get install --no-install-recommends docker.io iptables" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "no Docker daemon answers and only root can start one: sudo $0" >&2
    exit 1
fi

# A daemon that is still starting must not get a rival: the second one would delete the first one's bridge.
if ! pidof dockerd >/dev/null; then
    setsid dockerd >"$log" 2>&1 </dev/null &
fi
for _ in $(seq 150); do
    answers && exit 0
    sleep 0.2
done
echo "dockerd does not answer after 30 s; the end of $log:" >&2
tail -n 20 "$log" >&2
exit 1
