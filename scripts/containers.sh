#!/usr/bin/env bash
# Installs podman and makes the image that `make test-containers` builds upon: the distribution's
# Python, so that no registry is asked. This machine's certificates go into it.
set -euo pipefail
here=$PWD/.containers

as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
if ! command -v apt-get >/dev/null; then
  echo "These tests install Debian's podman, runc and mmdebstrap; run them on Debian." >&2
  exit 1
fi
if ! command -v podman >/dev/null || ! command -v mmdebstrap >/dev/null || ! command -v runc >/dev/null; then
  echo "Installing podman, runc and mmdebstrap"
  "${as_root[@]}" apt-get update -qq
  DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install --yes --no-install-recommends -qq \
    podman runc mmdebstrap catatonit >/dev/null
fi

mkdir -p "$here/base"
# What works without systemd, and in a machine whose control groups are of version 1.
cat >"$here/containers.conf" <<'CONF'
[containers]
netns = "host"
default_ulimits = ["nofile=16384:16384", "nproc=32768:32768"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
cat >"$here/podman" <<SCRIPT
#!/bin/sh
CONTAINERS_CONF=$here/containers.conf exec podman --root $here/storage --runroot $here/run "\$@"
SCRIPT
chmod +x "$here/podman"

if ! "$here/podman" image exists localhost/aios-python; then
  echo "Making the image localhost/aios-python (some minutes)"
  mmdebstrap --quiet --variant=minbase --include=python3,python3-pip \
    "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$here/base/root.tar"
  "$here/podman" import --quiet "$here/base/root.tar" localhost/aios-python-bare >/dev/null
  cp -L /etc/ssl/certs/ca-certificates.crt "$here/base/"
  cat >"$here/base/Containerfile" <<'FILE'
FROM localhost/aios-python-bare
COPY ca-certificates.crt /etc/ssl/certs/
RUN ln -s python3 /usr/bin/python && rm -f /usr/lib/python3*/EXTERNALLY-MANAGED
ENV PATH=/usr/local/bin:/usr/bin:/bin PIP_CERT=/etc/ssl/certs/ca-certificates.crt
FILE
  rm -f "$here/base/root.tar"
  "$here/podman" build --quiet --pull=never --isolation=chroot --tag localhost/aios-python "$here/base" >/dev/null
fi
