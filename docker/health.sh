#!/bin/sh
# Is this container well? Says no (exit code 1) if its GPU is lost or its Ray node does not answer.
# A training has no question that could be asked from outside: it is well while it runs, and its exit code says the rest.
set -u

no() { echo "$1"; exit 1; }

if [ -e /dev/nvidiactl ]; then
  nvidia-smi -L >/dev/null 2>&1 || no "The GPU does not answer nvidia-smi. Start the container again."
fi

# Each Ray node's own agent says whether the raylet, and on the head the cluster's table, are alive. It asks for no token.
# A container that is to become one, and waits for its head, is not well yet.
agent="http://127.0.0.1:${RAY_AGENT_PORT:-52365}/api/healthz"
if pgrep -f 'raylet/raylet|ray start' >/dev/null; then
  wget -q -t 1 -T 5 -O /dev/null "$agent" || no "The Ray node here does not answer at $agent."
fi
echo "well"
