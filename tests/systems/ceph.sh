#!/usr/bin/env bash
# A Ceph of one host on loopback, in memory: a monitor, an OSD, and its S3 gateway.
#
#   ceph.sh DIR PORT    starts; PORT is the gateway's, the monitor takes the two after it
#   ceph.sh DIR stop    ends what it started, by pid
#
# scripts/systems.sh installs what it needs. The gateway's user has the keys AIOSKEY and AIOSSECRET.
set -euo pipefail
dir=${1:?usage: ceph.sh DIR PORT|stop}
port=${2:?usage: ceph.sh DIR PORT|stop}

# PID 1 of a container may leave zombies: one that is dead still answers `kill -0`.
alive() { [ -d "/proc/$1" ] && ! grep -q '^State:.*Z' "/proc/$1/status"; }

if [ "$port" = stop ]; then
  for file in "$dir"/run/*.pid; do
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do alive "$pid" || break; sleep 0.1; done
    if alive "$pid"; then kill -9 "$pid"; fi
  done
  exit 0
fi

mon=$((port + 1))
mkdir -p "$dir"/{run,log,mon}
cat >"$dir/ceph.conf" <<EOF
[global]
fsid = $(cat /proc/sys/kernel/random/uuid)
mon initial members = a
mon host = [v2:127.0.0.1:$mon,v1:127.0.0.1:$((mon + 1))]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
auth allow insecure global id reclaim = false
keyring = $dir/keyring
run dir = $dir/run
admin socket = $dir/run/\$name.asok
pid file = $dir/run/\$name.pid
log file = $dir/log/\$name.log
crash dir = $dir/crash
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail warn = 2
mon data avail crit = 1
[mon]
mon data = $dir/mon/\$id
[osd]
osd data = $dir/osd\$id
osd objectstore = memstore
memstore device bytes = 1073741824
osd class update on start = false
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw thread pool size = 16
rgw dns name = 127.0.0.1
rgw run sync thread = false
rgw dynamic resharding = false
EOF
export CEPH_CONF=$dir/ceph.conf
quiet() { "$@" >>"$dir/log/setup.log" 2>&1; }

quiet ceph-authtool -C "$dir/keyring" --gen-key -n mon. --cap mon 'allow *'
quiet ceph-authtool "$dir/keyring" --gen-key -n client.admin \
  --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
quiet ceph-authtool "$dir/keyring" --gen-key -n client.rgw.a \
  --cap mon 'allow rw' --cap osd 'allow rwx'
quiet ceph-authtool "$dir/keyring" --gen-key -n osd.0 \
  --cap mon 'allow profile osd' --cap osd 'allow *'
fsid=$(sed -n 's/^fsid = //p' "$dir/ceph.conf")
quiet monmaptool --create --clobber --fsid "$fsid" \
  --addv a "[v2:127.0.0.1:$mon,v1:127.0.0.1:$((mon + 1))]" "$dir/monmap"
quiet ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
quiet ceph-mon -i a

mkdir -p "$dir/osd0"
uuid=$(cat /proc/sys/kernel/random/uuid)
quiet ceph osd new "$uuid" 0
quiet ceph-osd -i 0 --mkfs --osd-uuid "$uuid"
quiet ceph osd crush add osd.0 1.0 root=default host=localhost
quiet ceph-osd -i 0
for _ in $(seq 150); do ceph osd stat 2>/dev/null | grep -q ' 1 up' && break; sleep 0.2; done

quiet radosgw -n client.rgw.a
for _ in $(seq 300); do
  if curl --silent --output /dev/null "http://127.0.0.1:$port/"; then break; fi
  sleep 0.2
done
quiet radosgw-admin user create --uid=aios --display-name=aios \
  --access-key=AIOSKEY --secret-key=AIOSSECRET
quiet radosgw-admin user create --uid=other --display-name=other \
  --access-key=OTHERKEY --secret-key=OTHERSECRET
