#!/usr/bin/env bash
# One training on several hosts with DeepSpeed's launcher, which starts it on each host by ssh (pdsh).
#
# Start, on one of the hosts, in a folder that all hosts share, with cxrdist's virtual environment active:
#   launch/hostfile/train.sh HOSTFILE train launch/finetune/vit-l-dinov2.yaml --out runs/vit-l
# Watch: it prints what all hosts print; `tensorboard --logdir runs/vit-l/tb` draws the progress.
# Stop: Ctrl-C, or `kill -TERM` (or -USR1) of this script: all ranks save a checkpoint and end. Never signal the process
#   `deepspeed` itself: it would end every DeepSpeed run that you have on these hosts.
# Go on: the same line again. `--resume auto` is added here.
#
#   HOSTFILE     Lines `host1 slots=8`: a name that ssh knows, and how many processes train there, one per GPU.
#   MASTER_ADDR  Address of the first host on the network for training. Default: what `hostname -I` there says first.
#   MASTER_PORT  Port there. Default: 29500; a second run needs another one.
#
# It needs pdsh on this host, and ssh without a password from here to every host, this one too.
# No ssh between the hosts? Take launch/torchrun/train.sh. Hosts without GPUs? `export DS_ACCELERATOR=cpu` first.
# What is set here goes to all hosts: PATH, LD_LIBRARY_PATH, CUDA_HOME, OMP_NUM_THREADS, DS_ACCELERATOR and all names
# that begin with NCCL_, GLOO_, TORCH_, CXRDIST_, HF_. Secrets do not (HF_TOKEN): lists of processes would show them.
# It ends with a checkpoint when you log out: start it in `tmux`, or with `nohup ... &`.

own=$(mktemp -d) || exit 1
trap 'rm -rf "$own"' EXIT

# >>> this run
# <<<

set -eu
fail() {
  echo "Error: $*" >&2
  exit 2
}
case ${1:-} in -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit ;; esac
[ $# -ge 3 ] || fail "Give a hostfile and a command, got '$*'. Example: $0 HOSTFILE train RUN.yaml --out DIR"
hostfile=$1 command=$2 run=$3
shift
case $command in
  train | pretrain) ;;
  *) fail "The word behind the hostfile must be train or pretrain, got '$command'." ;;
esac
[ -r "$hostfile" ] || fail "The hostfile must be a file, got '$hostfile'. launch/hostfile/hostfile is an example."
hosts=()
while read -r host slots || [ -n "$host" ]; do
  case $host in '' | '#'*) continue ;; esac
  [[ $slots =~ ^slots=[1-9][0-9]*([[:space:]].*)?$ ]] ||
    fail "Each line of $hostfile must be a host and its slots, got '$host $slots'. Example: host1 slots=8"
  hosts+=("$host")
done <"$hostfile"
[ ${#hosts[@]} -gt 0 ] || fail "The hostfile must name a host, got none in $hostfile. Example of a line: host1 slots=8"
for program in deepspeed pdsh ssh setsid; do
  command -v $program >/dev/null ||
    fail "$program must be in PATH, got none. Install it, or activate the virtual environment of cxrdist first."
done
here=$(pwd -P) deepspeed=$(command -v deepspeed)
plain='^[A-Za-z0-9_@%+=:,./-]+$' # what DeepSpeed need not quote
[[ $here =~ $plain && $here != *%* ]] ||
  fail "The folder's name must be of letters, digits and _@+=:,./- for DeepSpeed, got '$here'. Start in another folder."
[[ $deepspeed != *\'* ]] || fail "deepspeed must be in a folder without ' in its name, got '$deepspeed'. Move the environment."

# Before any of them comes near a shell of another host.
case " $* " in
  *" --resume "*) ;;
  *) set -- "$@" --resume auto ;;
esac
words=()
for word in "$@"; do
  case $word in
    *[\'\\\$\`%]* | *$'\n'*)
      fail "Words must be one line without ' \\ \$ \` %, got '$word'. Shells on the way would change them."
      ;;
    *' '*) words+=("$word") ;; # DeepSpeed puts double quotes around it, and around no other
    *) [[ $word =~ $plain ]] && words+=("$word") || words+=("'$word'") ;;
  esac
done

for host in "${hosts[@]}"; do
  code=0
  ssh -n -o BatchMode=yes -o ConnectTimeout=10 "$host" \
    "cd '$here' || exit 3; test -r '$run' || exit 4; test -x '$deepspeed' || exit 5" >"$own/said" 2>&1 || code=$?
  case $code in
    0) ;;
    3) fail "Every host must have the folder $here, got none on $host. Start in a folder that all hosts share." ;;
    4) fail "Every host must have the run's file $run in $here, got none on $host. Use a shared folder." ;;
    5) fail "Every host must have $deepspeed, got none on $host. Put it where all hosts have it." ;;
    *)
      said=$(tail -n 1 "$own/said" | tr -d '\r')
      fail "ssh must reach every host without a password, got '$said' from $host. Try: ssh $host true"
      ;;
  esac
done

export CXRDIST_LAUNCH=${own##*.}
for name in $(compgen -e); do
  case $name in
    *TOKEN* | *KEY* | *SECRET* | *PASSWORD*) continue ;;
    PATH | LD_LIBRARY_PATH | CUDA_HOME | OMP_NUM_THREADS | DS_ACCELERATOR) ;;
    NCCL_* | GLOO_* | TORCH_* | CXRDIST_* | HF_*) ;;
    *) continue ;;
  esac
  case ${!name} in
    *[\"\\\$\`%]* | *$'\n'*)
      fail "$name must be one line without \" \\ \$ \` % to be sent to all hosts, got '${!name}'. Change or unset it."
      ;;
  esac
  echo "$name=${!name}" >>"$own/environment"
done
export DS_ENV_FILE=$own/environment
# A host that is powered off is noticed after a minute, not never.
noticed="-o BatchMode=yes -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
export PDSH_SSH_ARGS_APPEND="$noticed ${PDSH_SSH_ARGS_APPEND:-}"

# In a session of its own, or Ctrl-C would reach it too: it answers by ending, by name, all DeepSpeed runs on all hosts.
setsid deepspeed --hostfile "$hostfile" --force_multi --no_ssh_check --log_level warning \
  ${MASTER_ADDR:+--master_addr "$MASTER_ADDR"} --master_port "${MASTER_PORT:-29500}" \
  --no_local_rank --module cxrdist "${words[@]}" &
launcher=$!

# It is enough that rank 0 hears of it: it is on the first host, and known by two of its variables. Processes that it
# has started have them too.
# shellcheck disable=SC2317 # called by traps
pass() {
  echo "SIG$1: the ranks stop after this step, with a checkpoint." >&2
  local told=""
  while [ -z "$told" ] && kill -0 "$launcher" 2>/dev/null; do
    told=$(ssh -o BatchMode=yes -o ConnectTimeout=10 "${hosts[0]}" sh -s -- "$CXRDIST_LAUNCH" "$1" <<'REMOTE' || true
for file in $(grep -slxzF "CXRDIST_LAUNCH=$1" /proc/[0-9]*/environ | xargs -r grep -slxzF RANK=0); do
  process=${file%/environ}
  parent=$(awk '$1 == "PPid:" {print $2}' "$process/status")
  grep -sqxzF RANK=0 "/proc/$parent/environ" || { kill -s "$2" "${process#/proc/}" && echo told; }
done
REMOTE
    )
    [ -n "$told" ] || sleep 1 # it has only just been started
  done
  heard=yes
}
trap 'pass INT' INT
trap 'pass USR1' USR1
trap 'pass TERM' TERM HUP
heard=yes
while [ -n "$heard" ]; do # a signal ends `wait`, too
  heard="" code=0
  wait "$launcher" || code=$?
done
exit "$code"
