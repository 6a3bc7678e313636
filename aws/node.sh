#!/usr/bin/env bash
# Set up a machine of cluster.yaml. Every command may be repeated.
#
#     node.sh FILE_SYSTEM                  mount the runs, install the locked packages, write the environment
#     node.sh stop-when-idle MINUTES       on the head: shut down after MINUTES without a job
#     node.sh stop-without-head MINUTES    on a worker: shut down after MINUTES without a head
#     node.sh watch-for-spot-notice        on a worker: drain the Ray node at a spot notice, two minutes before the end
#     node.sh check-idle|check-head MINUTES, check-spot    called by the timers of the three commands above
set -euo pipefail

INSTALL_DIR=~/cpo_ray
SHARED=/mnt/cpo_ray

main() {
  case "$1" in
    stop-when-idle) install_timer '*/5' "check-idle $2" ;;
    stop-without-head) install_timer '*/5' "check-head $2" ;;
    watch-for-spot-notice) install_timer '*' check-spot ;;
    check-idle) shut_down_unless job_runs "$2" ;;
    check-head) shut_down_unless raylet_runs "$2" ;;
    check-spot) drain_on_spot_notice ;;
    *) mount_shared "$1"; install_packages; write_environment ;;
  esac
}

mount_shared() {
  mountpoint -q "$SHARED" && return
  command -v mount.nfs4 >/dev/null || { sudo apt-get update -qq; sudo apt-get install -y -qq nfs-common; }
  sudo mkdir -p "$SHARED"
  # hard: if the storage is unreachable for a minute, writes wait instead of failing.
  sudo mount -t nfs4 -o nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport \
    "$1.efs.$(region).amazonaws.com:/" "$SHARED"
  sudo install -d -o "$USER" -m 700 "$SHARED/runs" "$SHARED/data" "$SHARED/huggingface"
}

install_packages() {
  local stamp
  stamp="$INSTALL_DIR/.installed-$(cksum <"$INSTALL_DIR/requirements/gpu.lock" | tr ' ' -)"
  [ -e "$stamp" ] && return
  command -v g++ >/dev/null || { sudo apt-get update -qq; sudo apt-get install -y -qq g++; }
  python3 -m pip install -q --user uv==0.13.9
  python3 -m uv python install -q 3.11
  python3 -m uv venv -q --clear --python 3.11 "$INSTALL_DIR/venv"
  VIRTUAL_ENV="$INSTALL_DIR/venv" python3 -m uv pip install -q --no-deps --require-hashes -r "$INSTALL_DIR/requirements/gpu.lock"
  touch "$stamp"
}

write_environment() {
  # The machine image contains EFA's plugin for NCCL and its libraries.
  cat >"$INSTALL_DIR/environment" <<END
. $INSTALL_DIR/venv/bin/activate
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_JOB_STOP_WAIT_TIME_S=120
export CPO_RAY_RUNS=$SHARED/runs HF_HOME=$SHARED/huggingface
export LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib:/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu:/opt/amazon/efa/lib
END
  cat >"$INSTALL_DIR/secrets" <<END
if CPO_RAY_JUDGE_KEY=\$(aws ssm get-parameter --region $(region) --name /cpo-ray/judge-key --with-decryption \
    --query Parameter.Value --output text 2>/dev/null); then
  export CPO_RAY_JUDGE_KEY
else
  echo "no parameter /cpo-ray/judge-key: configurations with a judge that needs a key will be refused"
fi
END
}

install_timer() {
  echo "$1 * * * * $USER bash $INSTALL_DIR/aws/node.sh $2" | sudo tee "/etc/cron.d/cpo-ray-${2%% *}" >/dev/null
  date +%s >"$INSTALL_DIR/last-needed"
}

shut_down_unless() {
  if "$1"; then
    date +%s >"$INSTALL_DIR/last-needed"
  elif [ $(($(date +%s) - $(cat "$INSTALL_DIR/last-needed"))) -gt $(($2 * 60)) ]; then
    sudo shutdown -h now
  fi
}

# If Ray does not answer, no job runs: a head without Ray is of no use.
job_runs() {
  . "$INSTALL_DIR/environment"
  local jobs
  jobs=$(ray job list 2>/dev/null || true)  # no pipe: grep -q exits at the first match, and ray would fail with SIGPIPE
  grep -qE 'JobStatus\.(RUNNING|PENDING)|status=.?(RUNNING|PENDING)' <<<"$jobs"
}

# A raylet exits if its head does not answer for a minute. Only the head terminates workers, so nothing else would stop this
# machine.
raylet_runs() {
  pgrep -x raylet >/dev/null
}

# Called every minute, polls every five seconds, because the notice comes only two minutes before the end. Draining a node
# twice does no harm.
drain_on_spot_notice() {
  . "$INSTALL_DIR/environment"
  for _ in {1..11}; do
    if metadata spot/instance-action >/dev/null; then
      RAY_ADDRESS=auto ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "spot notice" \
        --deadline-remaining-seconds 110
      return
    fi
    sleep 5
  done
}

region() {
  metadata placement/region
}

# Read AWS' metadata of this machine; fails if there is none.
metadata() {
  local token
  token=$(curl -sfX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
  curl -sf "http://169.254.169.254/latest/meta-data/$1" -H "X-aws-ec2-metadata-token: $token"
}

main "$@"
