#!/usr/bin/env bash
# An sshd of its own on loopback, with keys of its own, and DIR/bin/ssh, which knows nothing else:
# `gpu1` and `gpu2` are this machine, each with directories of its own; `stranger` is one whose key
# is another's.
#
#   ssh.sh DIR PORT    starts
#   ssh.sh DIR stop    ends what it started
#
# scripts/systems.sh installs it. It lets in whoever starts it, and nobody else.
set -euo pipefail
dir=${1:?usage: ssh.sh DIR PORT|stop}
port=${2:?usage: ssh.sh DIR PORT|stop}

if [ "$port" = stop ]; then
  for file in "$dir"/*.pid; do kill "$(cat "$file")" 2>/dev/null || true; done
  exit 0
fi

# What the tests know their processes by.
MARK=$(env | grep ^AIOS_TEST || true)
export PATH=$PATH:/usr/sbin

if [ "$(id -u)" -eq 0 ]; then mkdir -p /run/sshd; fi
mkdir "$dir/bin"
for key in host other user; do ssh-keygen -q -t ed25519 -N '' -f "$dir/$key"; done
cp "$dir/user.pub" "$dir/authorized"
ports=("$port" "$((port + 1))")
names=(gpu1 gpu2)
for i in 0 1; do
  name=${names[i]}
  cat >"$dir/$name.conf" <<EOF
ListenAddress 127.0.0.1
Port ${ports[i]}
HostKey $dir/host
AuthorizedKeysFile $dir/authorized
PidFile $dir/$name.pid
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
SetEnv JUPYTER_RUNTIME_DIR=$dir/$name/runtime JUPYTER_DATA_DIR=$dir/$name/data $MARK
EOF
  "$(command -v sshd)" -f "$dir/$name.conf" -E "$dir/$name.log"
  echo "[127.0.0.1]:${ports[i]} $(cut -d' ' -f1,2 "$dir/host.pub")" >>"$dir/known"
done

cat >"$dir/config" <<EOF
Host gpu1
  HostName 127.0.0.1
  Port ${ports[0]}
Host gpu2
  HostName 127.0.0.1
  Port ${ports[1]}
Host stranger
  HostName 127.0.0.1
  Port ${ports[0]}
  UserKnownHostsFile $dir/strangers
Host *
  User $(id -un)
  IdentityFile $dir/user
  IdentitiesOnly yes
  UserKnownHostsFile $dir/known
  GlobalKnownHostsFile /dev/null
EOF
echo "[127.0.0.1]:${ports[0]} $(cut -d' ' -f1,2 "$dir/other.pub")" >"$dir/strangers"
printf '#!/bin/sh\nexec %s -F %s "$@"\n' "$(command -v ssh)" "$dir/config" >"$dir/bin/ssh"
chmod +x "$dir/bin/ssh"
for name in gpu1 gpu2; do
  for _ in $(seq 100); do
    if "$dir/bin/ssh" -o BatchMode=yes "$name" true 2>/dev/null; then continue 2; fi
    sleep 0.1
  done
  echo "sshd does not come up; see $dir/$name.log" >&2
  exit 1
done
