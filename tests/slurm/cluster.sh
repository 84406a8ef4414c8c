#!/usr/bin/env bash
# A scratch SLURM on this machine: munge, one controller and virtual nodes, without systemd, all in one folder.
#   tests/slurm/cluster.sh up FOLDER [NODES]    install slurm-wlm and munge if need be, start two nodes (or NODES)
#   tests/slurm/cluster.sh down FOLDER          end its jobs, its daemons and whatever they left behind
# Afterwards `export SLURM_CONF=FOLDER/slurm.conf` leads sbatch, squeue and scontrol there. Needs root on Debian or
# Ubuntu, whose build lets several slurmd run on one host. Exit code 3: SLURM cannot be had here.
set -euo pipefail

usage() { sed -n '2,4s/^# *//p' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
folder="$(realpath -m "$2")"
export SLURM_CONF="$folder/slurm.conf"

cannot() { echo "no SLURM here: $*" >&2; exit 3; }

install_packages() {
    if command -v slurmctld slurmd munged sbatch >/dev/null; then return; fi
    command -v apt-get >/dev/null || cannot "slurm-wlm and munge are missing and there is no apt-get"
    echo "installing slurm-wlm and munge"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        slurm-wlm munge; } >"$folder/apt.log" 2>&1 ||
        cannot "apt-get install slurm-wlm munge: $(tail -1 "$folder/apt.log")"
}

# The port numbers belong to the folder, so that two clusters on one machine rarely meet.
configure() {
    local nodes="$1" host port node
    host="$(hostname -s)"
    port=$((10000 + $(printf %s "$folder" | cksum | cut -d ' ' -f 1) % 9000))
    cat >"$SLURM_CONF" <<CONF
ClusterName=scratch
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job must wait until its old credential has expired: two minutes by default.
AuthInfo=socket=$folder/munge/socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$folder/jobs.txt
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
JobRequeue=1
ReturnToService=2
SlurmdParameters=config_overrides
SlurmdTimeout=120
KillWait=120
GresTypes=gpu
CONF
    # GPUs to ask for and to be given, though there are none.
    echo "Name=gpu File=/dev/null,/dev/zero" >"$folder/gres.conf"
    for node in $(seq "$nodes"); do
        echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=2 RealMemory=4000" \
            "Gres=gpu:2"
    done >>"$SLURM_CONF"
    echo "PartitionName=test Nodes=n[1-$nodes] Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
}

up() {
    local nodes="${1:-2}" node
    [ "$(id -u)" -eq 0 ] || cannot "the daemons run as root"
    mkdir -p "$folder/state" "$folder/munge"
    install_packages
    [ -d /sys/fs/cgroup ] || cannot "/sys/fs/cgroup is not mounted"
    configure "$nodes"
    chmod 700 "$folder/munge"
    [ -e "$folder/munge/key" ] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
    # Its own socket, key and files; --force because the folder above belongs to a test and not to the system.
    munged --force --socket="$folder/munge/socket" --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" \
        --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" 2>/dev/null ||
        cannot "munged did not start, see $folder/munge/log"
    slurmctld -c -f "$SLURM_CONF"
    for node in $(seq "$nodes"); do slurmd -N "n$node" -f "$SLURM_CONF"; done
    for _ in $(seq 100); do
        if [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" -eq "$nodes" ]; then
            echo "up: export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep 0.2
    done
    sinfo -N -l >&2 || true
    cannot "the nodes did not come up within 20 s, see the logs in $folder"
}

# Processes that were started with our SLURM_CONF: daemons, jobs, and workers in sessions of their own. Everything else
# on the machine is left alone, and so are this script and those who called it.
ours() {
    local environment pid callers=" " parent=$BASHPID
    while [ "$parent" -gt 1 ]; do
        callers+="$parent "
        parent="$(awk '/^PPid:/ {print $2}' "/proc/$parent/status")"
    done
    for environment in /proc/[0-9]*/environ; do
        pid="${environment#/proc/}"
        pid="${pid%/environ}"
        if [[ "$callers" != *" $pid "* ]] &&
            tr '\0' '\n' 2>/dev/null <"$environment" | grep -qxF "SLURM_CONF=$SLURM_CONF"; then
            echo "$pid"
        fi
    done 2>/dev/null
}

down() {
    [ -e "$SLURM_CONF" ] || return 0
    scancel --state=PENDING,RUNNING,SUSPENDED --user=root 2>/dev/null || true
    scontrol shutdown 2>/dev/null || true
    local signal pid
    for signal in TERM TERM KILL KILL; do
        for pid in $(ours); do kill -"$signal" "$pid" 2>/dev/null || true; done
        [ -n "$(ours)" ] || return 0
        sleep 1
    done
}

case "$1" in
    up) up "${3:-2}" ;;
    down) down ;;
    *) usage ;;
esac
