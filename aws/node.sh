#!/usr/bin/env bash
# What cluster.yaml runs on every machine, as often as it likes.
#
#     node.sh FILE_SYSTEM                  mount the runs, install the locked packages, write the environment
#     node.sh stop-when-idle MINUTES       on the head: end the machine once no job has run for so long
#     node.sh stop-without-head MINUTES    on a worker: end the machine once it has had no head for so long
#     node.sh watch-for-spot-notice        on a worker: tell Ray when AWS wants the machine back, two minutes before
#     node.sh check-idle|check-head MINUTES, check-spot    what the timers of the three above call
set -euo pipefail

HOME_OF_ALL=~/cpo_ray
SHARED=/mnt/cpo_ray

main() {
  case "$1" in
    stop-when-idle) install_timer '*/5' "check-idle $2" ;;
    stop-without-head) install_timer '*/5' "check-head $2" ;;
    watch-for-spot-notice) install_timer '*' check-spot ;;
    check-idle) end_unless job_runs "$2" ;;
    check-head) end_unless raylet_runs "$2" ;;
    check-spot) tell_of_spot_notice ;;
    *) mount_shared "$1"; install_packages; write_environment ;;
  esac
}

mount_shared() {
  mountpoint -q "$SHARED" && return
  command -v mount.nfs4 >/dev/null || { sudo apt-get update -qq; sudo apt-get install -y -qq nfs-common; }
  sudo mkdir -p "$SHARED"
  # hard: a storage that is away for a minute makes writers wait, not fail.
  sudo mount -t nfs4 -o nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport \
    "$1.efs.$(region).amazonaws.com:/" "$SHARED"
  sudo install -d -o "$USER" -m 700 "$SHARED/runs" "$SHARED/data" "$SHARED/huggingface"
}

install_packages() {
  local stamp
  stamp="$HOME_OF_ALL/.installed-$(cksum <"$HOME_OF_ALL/requirements/gpu.lock" | tr ' ' -)"
  [ -e "$stamp" ] && return
  command -v g++ >/dev/null || { sudo apt-get update -qq; sudo apt-get install -y -qq g++; }
  python3 -m pip install -q --user uv==0.13.9
  python3 -m uv python install -q 3.11
  python3 -m uv venv -q --clear --python 3.11 "$HOME_OF_ALL/venv"
  VIRTUAL_ENV="$HOME_OF_ALL/venv" python3 -m uv pip install -q --no-deps --require-hashes -r "$HOME_OF_ALL/requirements/gpu.lock"
  touch "$stamp"
}

write_environment() {
  # EFA's plugin for NCCL and its libraries come with the machine image.
  cat >"$HOME_OF_ALL/environment" <<END
. $HOME_OF_ALL/venv/bin/activate
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
export RAY_JOB_STOP_WAIT_TIME_S=120
export CPO_RAY_RUNS=$SHARED/runs HF_HOME=$SHARED/huggingface
export LD_LIBRARY_PATH=/opt/amazon/ofi-nccl/lib:/opt/amazon/ofi-nccl/lib/x86_64-linux-gnu:/opt/amazon/efa/lib
END
  cat >"$HOME_OF_ALL/secrets" <<END
if CPO_RAY_JUDGE_KEY=\$(aws ssm get-parameter --region $(region) --name /cpo-ray/judge-key --with-decryption \
    --query Parameter.Value --output text 2>/dev/null); then
  export CPO_RAY_JUDGE_KEY
else
  echo "no parameter /cpo-ray/judge-key: configurations with a judge of their own will be refused"
fi
END
}

install_timer() {
  echo "$1 * * * * $USER bash $HOME_OF_ALL/aws/node.sh $2" | sudo tee "/etc/cron.d/cpo-ray-${2%% *}" >/dev/null
  date +%s >"$HOME_OF_ALL/last-needed"
}

end_unless() {
  if "$1"; then
    date +%s >"$HOME_OF_ALL/last-needed"
  elif [ $(($(date +%s) - $(cat "$HOME_OF_ALL/last-needed"))) -gt $(($2 * 60)) ]; then
    sudo shutdown -h now
  fi
}

# A cluster that does not answer has none: a head without Ray earns nothing.
job_runs() {
  . "$HOME_OF_ALL/environment"
  local jobs
  jobs=$(ray job list 2>/dev/null || true)  # no pipe: grep leaves at the match, and ray would fail of it
  grep -qE 'JobStatus\.(RUNNING|PENDING)|status=.?(RUNNING|PENDING)' <<<"$jobs"
}

# A raylet whose head does not answer for a minute ends. Only the head ends workers, so nobody would end this machine.
raylet_runs() {
  pgrep -x raylet >/dev/null
}

# Called every minute, asks every five seconds: of two minutes' notice few may be lost. Told again, Ray does not mind.
tell_of_spot_notice() {
  . "$HOME_OF_ALL/environment"
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

# What AWS says of this machine; fails where it says nothing.
metadata() {
  local token
  token=$(curl -sfX PUT http://169.254.169.254/latest/api/token -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
  curl -sf "http://169.254.169.254/latest/meta-data/$1" -H "X-aws-ec2-metadata-token: $token"
}

main "$@"
