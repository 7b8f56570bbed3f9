#!/usr/bin/env bash
# A Slurm of its own on loopback: two machines, which are this one, with eight cores and four GPUs
# each that Slurm believes in; the partition `small` has one of them for ten minutes at most.
#
#   slurm.sh DIR PORT    starts; DIR/slurm.conf is what SLURM_CONF shall name
#   slurm.sh DIR stop    ends what it started
#
# scripts/systems.sh installs it. Its daemons run as whoever starts them.
set -euo pipefail
dir=${1:?usage: slurm.sh DIR PORT|stop}
port=${2:?usage: slurm.sh DIR PORT|stop}

if [ "$port" = stop ]; then
  # Jobs first: their processes are no children of what is ended.
  SLURM_CONF=$dir/slurm.conf scancel --user="$(id -un)" || true
  for _ in $(seq 100); do
    [ -z "$(SLURM_CONF=$dir/slurm.conf squeue --noheader)" ] && break
    sleep 0.1
  done
  for file in "$dir"/*.pid; do kill "$(cat "$file")" 2>/dev/null || true; done
  exit 0
fi

user=$(id -un) host=$(hostname -s)
mkdir "$dir"/{state,spool,log,munge,dev}
chmod 755 "$dir"
chmod 700 "$dir/munge"
(umask 077 && head -c 1024 /dev/urandom >"$dir/munge/key")
munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
  --pid-file="$dir/munged.pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" \
  2>"$dir/munge/errors"

cat >"$dir/slurm.conf" <<EOF
ClusterName=aios
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
DefMemPerCPU=500
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=8 RealMemory=16000 Gres=gpu:4
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 3)) CPUs=8 RealMemory=16000 Gres=gpu:4
PartitionName=gpu Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
PartitionName=small Nodes=n1 MaxTime=10 State=UP
EOF
echo AutoDetect=off >"$dir/gres.conf"
for node in n1 n2; do
  for gpu in 0 1 2 3; do ln -s /dev/null "$dir/dev/$node-gpu$gpu"; done
  echo "NodeName=$node Name=gpu File=$dir/dev/$node-gpu[0-3]" >>"$dir/gres.conf"
done

export SLURM_CONF=$dir/slurm.conf
slurmctld -c
for node in n1 n2; do
  mkdir "$dir/spool/$node"
  slurmd -N "$node"
done
for _ in $(seq 300); do
  if [ "$(sinfo --noheader --Node --partition=gpu --format=%t 2>/dev/null | grep -c idle)" = 2 ]; then
    exit 0
  fi
  sleep 0.1
done
echo "Slurm's machines do not come up; see $dir/log" >&2
exit 1
