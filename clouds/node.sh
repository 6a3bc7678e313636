#!/usr/bin/env bash
# Set up a machine of clouds/gcp.yaml or clouds/azure.yaml: the locked packages, and the environment of Ray's processes.
#
#     node.sh SHARED      a folder that all machines see, for runs, data and models
set -euo pipefail
INSTALL_DIR=~/cpo_ray
SHARED=$1

stamp="$INSTALL_DIR/.installed-$(cksum <"$INSTALL_DIR/requirements/gpu.lock" | tr ' ' -)"
if [ ! -e "$stamp" ]; then
  command -v g++ >/dev/null || { sudo apt-get update -qq; sudo apt-get install -y -qq g++; }
  python3 -m pip install -q --user uv==0.13.9
  python3 -m uv python install -q 3.11
  python3 -m uv venv -q --clear --python 3.11 "$INSTALL_DIR/venv"
  VIRTUAL_ENV="$INSTALL_DIR/venv" python3 -m uv pip install -q --no-deps --require-hashes -r "$INSTALL_DIR/requirements/gpu.lock"
  touch "$stamp"
fi
cat >"$INSTALL_DIR/environment" <<END
. $INSTALL_DIR/venv/bin/activate
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_JOB_STOP_WAIT_TIME_S=120
export CPO_RAY_RUNS=$SHARED/runs HF_HOME=$SHARED/huggingface
END
