#!/usr/bin/env bash
# A PostgreSQL of its own on loopback, with the user `aios`, whose password is `right`.
#
#   postgres.sh DIR PORT    starts
#   postgres.sh DIR stop    ends what it started
#
# scripts/systems.sh installs it. The server refuses to run as root: then it runs as `postgres`.
set -euo pipefail
dir=${1:?usage: postgres.sh DIR PORT|stop}
port=${2:?usage: postgres.sh DIR PORT|stop}
bin=$(find /usr/lib/postgresql -maxdepth 2 -name bin | sort -V | tail -n 1)
as=()
if [ "$(id -u)" -eq 0 ]; then as=(runuser -u postgres --); fi

if [ "$port" = stop ]; then
  "${as[@]}" "$bin/pg_ctl" -D "$dir/data" -m immediate stop >/dev/null
  exit 0
fi

mkdir "$dir/data"
echo right >"$dir/password"
if [ "$(id -u)" -eq 0 ]; then
  chmod 755 "$dir"
  chown -R postgres: "$dir/data" "$dir/password"
fi
cd "$dir"
"${as[@]}" "$bin/initdb" -D "$dir/data" -U aios --pwfile="$dir/password" -A scram-sha-256 \
  -E UTF8 --locale=C.UTF-8 -N >"$dir/initdb.log"
"${as[@]}" "$bin/pg_ctl" -D "$dir/data" -w -l "$dir/data/log" start >/dev/null \
  -o "-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories=$dir/data -c fsync=off"
