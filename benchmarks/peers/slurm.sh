#!/usr/bin/env bash
# A Slurm of its own on this machine: one node with 8 GPUs that are files, on loopback alone.
#
#   slurm.sh DIR        starts it; then: export SLURM_CONF=DIR/slurm.conf
#   slurm.sh DIR stop   ends what the first call has started
#
# As root, with Debian's packages slurmctld slurmd slurm-client munge slurm-wlm-basic-plugins.
set -euo pipefail
dir=${1:?usage: slurm.sh DIR [stop]}
port=${PORT:-17817}
gpus=${GPUS:-8}

if [ "${2:-}" = stop ]; then
  pids=$(cat "$dir"/*.pid "$dir"/munge/*.pid 2>/dev/null || true)
  for pid in $pids; do kill "$pid" 2>/dev/null || true; done
  for pid in $pids; do
    # slurmctld writes its state as it ends. One that nobody reaps is gone too.
    for _ in $(seq 100); do
      if ! grep -qs '^State:.[^Z]' "/proc/$pid/status"; then break; fi
      sleep 0.1
    done
  done
  exit 0
fi

host=$(hostname -s)
mkdir -p "$dir"/{state,spool,log,munge,gpu}
chmod 755 "$dir"

# munged refuses a key or a socket in a directory that others may write to.
dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 status=none
chown -R munge: "$dir/munge"
chmod 700 "$dir/munge"
chmod 600 "$dir/munge/key"
runuser -u munge -- munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
  --pid-file="$dir/munge/munged.pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"

cat > "$dir/slurm.conf" <<CONF
ClusterName=bench
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
DefMemPerCPU=100
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=16000 Gres=gpu:$gpus State=UNKNOWN
PartitionName=gpu Nodes=n1 Default=YES MaxTime=INFINITE State=UP
CONF
echo AutoDetect=off > "$dir/gres.conf"
for gpu in $(seq 0 $((gpus - 1))); do touch "$dir/gpu/$gpu"; done
echo "NodeName=n1 Name=gpu File=$dir/gpu/[0-$((gpus - 1))]" >> "$dir/gres.conf"

export SLURM_CONF=$dir/slurm.conf
slurmctld -f "$SLURM_CONF" -c
slurmd -f "$SLURM_CONF" -N n1
for _ in $(seq 100); do
  if sinfo -h -N -o '%t' 2>/dev/null | grep -q idle; then exit 0; fi
  sleep 0.1
done
echo "slurm.sh: the node did not become idle; see $dir/log" >&2
exit 1
