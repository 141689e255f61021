#!/usr/bin/env bash
# One training on several hosts with torchrun. Needs no scheduler and no ssh: type the same line on every host.
#
# Start, in the same shared folder on each host, with cxrdist's virtual environment active:
#   NODES=2 GPUS_PER_NODE=8 HEAD=host1 launch/torchrun/train.sh train launch/finetune/vit-l-dinov2.yaml --out runs/vit-l
# Watch: one of the hosts prints the progress; `tensorboard --logdir runs/vit-l/tb` draws it.
# Stop: Ctrl-C on HEAD, or `kill -TERM` (or -USR1) of its torchrun. The run saves a checkpoint and ends on all hosts.
#   torchrun always shows a traceback then, and ends with 1: look for "Stopped at step" above it on HEAD. The other
#   hosts only say that they lost the connection: that is the end in good order.
# Go on: the same lines again. `--resume auto` is added here.
#
#   NODES          How many hosts. `1:2` is elastic: if one of two is lost, the other goes on alone, from the newest
#                  checkpoint. With `2` it waits ten minutes for a second one: type the line there again. Default: 1.
#   GPUS_PER_NODE  How many processes train on each host: one per GPU. Without GPUs: as many as you like.
#   HEAD           Where the hosts meet: the first one's name as `hostname` prints it there, or HOST:PORT. If this host
#                  is lost, the run ends on all. Default port: 29500; a second run needs another one.
#   MAX_RESTARTS   How often a run is taken up again after an error or a lost host. Default: 1; elastic 3.
#   TORCH_ELASTIC_SHUTDOWN_TIMEOUT
#                  Seconds that torchrun gives its processes for the checkpoint when it is stopped. Default: 600.
#
# It ends when you log out: start it in `tmux`, or with `nohup ... &`.
# If the hosts do not find each other, name the network: `export GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0`.

# >>> this run
# <<<

set -eu
fail() {
  echo "Error: $*" >&2
  exit 2
}
NODES=${NODES:-1} HEAD=${HEAD:-}
case ${1:-} in
  train | pretrain) ;;
  -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" && exit ;;
  *) fail "The first word must be train or pretrain, got '${1:-}'. Example: $0 train RUN.yaml --out DIR" ;;
esac
[[ ${GPUS_PER_NODE:-} =~ ^[1-9][0-9]*$ ]] ||
  fail "GPUS_PER_NODE must be the number of processes on each host, got '${GPUS_PER_NODE:-}'. Example: GPUS_PER_NODE=8"
[[ $NODES =~ ^[1-9][0-9]*(:[1-9][0-9]*)?$ ]] ||
  fail "NODES must be a number of hosts, or the least and the most, got '$NODES'. Examples: NODES=2, NODES=1:2"
command -v torchrun >/dev/null ||
  fail "torchrun must be in PATH, got none on $(hostname). Activate the virtual environment of cxrdist first."
case " $* " in
  *" --resume "*) ;;
  *) set -- "$@" --resume auto ;;
esac

if [ "$NODES" = 1 ]; then
  meet=(--standalone)
else
  [ -n "$HEAD" ] || fail "HEAD must name the first host, got nothing. Example: HEAD=$(hostname)"
  [[ $HEAD == *:* ]] || HEAD=$HEAD:29500
  [[ ${HEAD##*:} =~ ^[1-9][0-9]{0,4}$ && ${HEAD##*:} -lt 65536 ]] ||
    fail "The port of HEAD must be 1 to 65535, got '${HEAD##*:}'. Example: HEAD=$(hostname):29500"
  getent ahosts "${HEAD%:*}" >/dev/null ||
    fail "HEAD must be a name or an address that this host knows, got '${HEAD%:*}'. Type what 'hostname' prints on the first host."
  # Hosts whose lines differ must not train together: they do not meet.
  line=$(printf '%s\n' "$@" | cksum)
  meet=(--rdzv-backend=c10d "--rdzv-endpoint=$HEAD" "--rdzv-id=${line%% *}")
fi
case $NODES in *:*) again=3 ;; *) again=1 ;; esac
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# By itself torchrun kills them 30 s after a signal: too soon for a large checkpoint.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600}"
# SIGHUP is left alone: torchrun would end at it in spite of nohup.
exec torchrun "--nnodes=$NODES" "--nproc-per-node=$GPUS_PER_NODE" "${meet[@]}" "--max-restarts=${MAX_RESTARTS:-$again}" \
  --signals-to-handle=SIGTERM,SIGINT,SIGUSR1 -m cxrdist "$@"
