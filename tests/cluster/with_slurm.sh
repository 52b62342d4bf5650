#!/usr/bin/env bash
# Runs a command beside a throw-away SLURM of two nodes on this machine, and leaves nothing of it behind:
#   tests/cluster/with_slurm.sh COMMAND ...
# Installs Debian's packages where they are missing, which takes root. Nothing in /etc or /run is touched.
set -euo pipefail
export PATH=/usr/sbin:$PATH

if ! { command -v slurmctld && command -v slurmd && command -v squeue && command -v munged; } >/dev/null; then
  [ "$(id -u)" = 0 ] || { echo "no SLURM here, and installing it takes root: apt-get install slurm-wlm munge" >&2; exit 1; }
  export DEBIAN_FRONTEND=noninteractive
  timeout 120 apt-get update -qq
  timeout 300 apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge >/dev/null
fi
[ "$(id -u)" = 0 ] || { echo "slurmd starts jobs as their users, which takes root" >&2; exit 1; }

# Three in a row that nobody listens at.
is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port=0
until [ $port != 0 ] && is_free $port && is_free $((port + 1)) && is_free $((port + 2)); do
  port=$((20000 + RANDOM % 10000))
done

root=$(mktemp -d "${TMPDIR:-/tmp}/tljax-slurm.XXXXXX")
chmod 755 "$root"
export SLURM_CONF=$root/slurm.conf

is() { # pidfile, name -> pid, if that process is really the one of that name
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 1
  [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] && echo "$pid"
}

stop() { # pidfile, name
  local pid
  pid=$(is "$1" "$2") || return 0
  kill "$pid" 2>/dev/null || return 0
  # A process that nobody has asked for its end has no program any more.
  for _ in $(seq 40); do [ -n "$(readlink "/proc/$pid/exe")" ] || return 0; sleep 0.25; done
  kill -9 "$pid" 2>/dev/null || true
}

down() {
  local status=$?
  trap - EXIT INT TERM
  set +e
  [ -z "${command_pid:-}" ] || kill "$command_pid" 2>/dev/null && wait "$command_pid"
  timeout 10 scancel --me 2>/dev/null
  for _ in $(seq 40); do [ -z "$(timeout 5 squeue --noheader 2>/dev/null)" ] && break; sleep 0.5; done
  for file in "$root"/run/slurmd.*.pid; do stop "$file" slurmd; done
  stop "$root/run/slurmctld.pid" slurmctld
  stop "$root/munge/pid" munged
  rm -rf "$root"
  exit "$status"
}
trap down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir -p "$root"/{state,spool.127.0.0.1,spool.127.0.0.2,log,run,munge}
chmod 711 "$root/munge"
(umask 077; head -c 1024 /dev/urandom >"$root/munge/key")
munged --force --key-file="$root/munge/key" --socket="$root/munge/sock" --pid-file="$root/munge/pid" \
  --log-file="$root/log/munged.log" --seed-file="$root/munge/seed" --num-threads=2

# Nodes whose names are addresses, as JAX asks for the address of the first. Eight pretended cores each.
# cred_expire: requeued jobs would wait for two minutes. preempt/partition_prio: jobs of `high` push out those of `main`.
host=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$root/munge/sock,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool.%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd.%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=3600
SlurmdTimeout=60
DefMemPerCPU=500
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=127.0.0.1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=8 RealMemory=8000 State=UNKNOWN
NodeName=127.0.0.2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=8 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=127.0.0.1,127.0.0.2 Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=127.0.0.1,127.0.0.2 MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=10 PreemptMode=OFF
CONF
slurmctld
for node in 127.0.0.1 127.0.0.2; do slurmd -N "$node"; done
for _ in $(seq 60); do
  count=$(timeout 3 sinfo --noheader --partition=main --states=idle --format=%D 2>/dev/null || true)
  [ "$count" = 2 ] && break
  sleep 0.5
done
[ "$count" = 2 ] || { tail -n 20 "$root"/log/*.log >&2; echo "SLURM has not come up" >&2; exit 1; }
# In the background, as a trap waits for what is in the foreground.
"$@" <&0 &
command_pid=$!
wait "$command_pid"
