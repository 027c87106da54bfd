#!/bin/bash
# The job as a Ray job on a cluster that is up already: `ray job submit`, its log, its exit code.
#
#   RAY_ADDRESS=http://head:8265 DATA_DIR=s3://bucket/droid OUT=s3://bucket/droid-wrist \
#     OPTIONS="--recipe nano" jobs/launch/ray_job.sh
#
# The driver runs on the head node; a node without work for it wants CPUS=0. wristaugment must be
# installed on every node, or named for `ray job submit` in RUNTIME_ENV (JSON), as in
# RUNTIME_ENV='{"pip": ["wristaugment"]}'. SIGTERM, SIGINT and SIGUSR1 stop the job, resumable, with
# exit code 75; the same command goes on. Needs ray[default] here and on the cluster; where that asks
# for a token, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or ~/.ray/auth_token).
set -u
: "${RAY_ADDRESS:?the dashboard of the cluster, as in http://head:8265}"
id="wristaugment-$(date -u +%Y%m%d-%H%M%S)-$$"
# The job takes up to 30 s to stop; Ray would kill it after 3.
env=$(python3 - <<'PYTHON'
import json, os

env = json.loads(os.environ.get("RUNTIME_ENV") or "{}")
variables = env.setdefault("env_vars", {})
variables.setdefault("RAY_JOB_STOP_WAIT_TIME_S", "60")
print(json.dumps(env))
PYTHON
) || exit 2

# shellcheck disable=SC2086 # OPTIONS are words
ray job submit --submission-id "$id" --runtime-env-json "$env" \
  --entrypoint-num-cpus "${CPUS:-1}" -- \
  wristaugment run --address auto --data-dir "$DATA_DIR" --out "$OUT" ${OPTIONS:-} &
submit=$!
asked=0
trap 'asked=1' TERM INT USR1
told=0
while kill -0 "$submit" 2>/dev/null; do
  if [ "$asked" -eq 1 ] && [ "$told" -eq 0 ]; then
    told=1
    ray job stop "$id" >&2 || told=0 # not submitted yet: again
    [ "$told" -eq 1 ] || sleep 1 # longer than a second signal takes to come
  else
    wait "$submit"
  fi
done
wait "$submit"
code=$?

# `ray job submit` knows 0 and 1 alone, and says 0 of a job that was stopped.
exec python3 - "$id" "$code" <<'PYTHON'
import sys
from ray.job_submission import JobStatus, JobSubmissionClient

name, code = sys.argv[1], int(sys.argv[2])
try:
    info = JobSubmissionClient().get_job_info(name)
except Exception as error:
    print(f"ray_job.sh: nothing is known of {name}: {error}", file=sys.stderr)
    sys.exit(code or 1)
if info.status == JobStatus.STOPPED:
    sys.exit(75)
if info.driver_exit_code is not None:
    sys.exit(info.driver_exit_code)
sys.exit(0 if info.status == JobStatus.SUCCEEDED else 1)
PYTHON
