#!/usr/bin/env bash
# How does a run get onto a TPU pod, stay there through preemptions, and how does its report come back?
#
#     export TPU=lvr TPU_ZONE=us-east5-b TPU_TYPE=v5litepod-16 TPU_IMAGE=v2-alpha-tpuv5-lite
#     tools/launch_tpu.sh up                                # ask for the slice (spot) and wait for it
#     tools/launch_tpu.sh setup                             # this checkout and its packages on every host
#     tools/launch_tpu.sh all python tools/train.py --config configs/lvr.py:3b --workdir gs://bucket/lvr
#     tools/launch_tpu.sh keep python tools/train.py ...    # the three above, again after every preemption
#     tools/launch_tpu.sh each 'python tools/prism.py ... --workdir gs://bucket/sweep_$HOST'      # hosts by themselves
#     tools/launch_tpu.sh pull gs://bucket/sweep_0/report report
#     tools/launch_tpu.sh jobset IMAGE python tools/train.py ... | kubectl apply -f -             # the same on GKE
#     tools/launch_tpu.sh down
#
# `worker COMMAND` is what runs on a host, on a TPU VM, in a pod of Kubernetes or by hand: it tells JAX of the other
# hosts, hands SIGTERM on to COMMAND, and starts it again until it has finished. A checkpoint is all that it needs.
set -euo pipefail

usage() { sed -n '4,12s/^# \{0,4\}//p' "$0" >&2; exit 2; }
need() { for name in "$@"; do [[ -n ${!name:-} ]] || { echo "launch_tpu: $name is not set" >&2; exit 2; }; done; }
here() { cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd; }
tpus() { gcloud compute tpus "$@" --zone "$TPU_ZONE"; }
state() { tpus queued-resources describe "$TPU" --format 'value(state.state)' 2>/dev/null || echo NONE; }
on_all() { tpus tpu-vm ssh "$TPU" --worker=all --command "$1"; }
quoted() { printf '%q ' "$@"; }

up() {
    need TPU TPU_ZONE TPU_TYPE TPU_IMAGE
    # shellcheck disable=SC2086     # several options
    [[ $(state) != NONE ]] || tpus queued-resources create "$TPU" --node-id "$TPU" --accelerator-type "$TPU_TYPE" \
        --runtime-version "$TPU_IMAGE" ${TPU_OPTIONS---spot}
    until [[ $(state) == ACTIVE ]]; do
        case $(state) in FAILED | SUSPENDING | SUSPENDED) down && up && return ;; esac
        echo "launch_tpu: $TPU is $(state)" >&2
        sleep 30
    done
}

down() { need TPU TPU_ZONE && tpus queued-resources delete "$TPU" --force --quiet; }

setup() {
    need TPU TPU_ZONE
    local archive; archive=$(mktemp -d)/lvr_jax.tar.gz
    git -C "$(here)" archive --format tar.gz --prefix lvr_jax/ -o "$archive" HEAD
    tpus tpu-vm scp "$archive" "$TPU:" --worker=all
    on_all "tar xzf lvr_jax.tar.gz && python3 -m venv env && env/bin/pip install -q -e './lvr_jax[tpu]'"
}

all() { need TPU TPU_ZONE && on_all "cd lvr_jax && . ../env/bin/activate && tools/launch_tpu.sh worker $(quoted "$@")"; }

# Preemption takes the machines away with all that runs on them: ask for new ones and say the same command again.
keep() {
    until up && setup && all "$@"; do
        [[ $(state) != ACTIVE ]] || { echo "launch_tpu: $TPU is there, so the command failed by itself" >&2; return 1; }
        echo "launch_tpu: $TPU was preempted" >&2
    done
}

# Every host a JAX of its own over its own chips; $HOST is its number. Of 4 chips (v5litepod-8: "2,4,1" for 8).
each() {
    need TPU TPU_ZONE
    on_all "cd lvr_jax && . ../env/bin/activate && export HOST=\$(curl -s -H Metadata-Flavor:Google \
http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) CLOUD_TPU_TASK_ID=0 \
TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=${TPU_HOST_BOUNDS:-2,2,1} && $*"
}

pull() { mkdir -p "$2" && gcloud storage rsync --recursive "$1" "$2"; }

# How many hosts does this machine's slice have? TPU VMs say so on their metadata server only.
hosts() {
    compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/*' >/dev/null || { echo 1; return; }
    curl -sf --max-time 5 -H Metadata-Flavor:Google \
        http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints |
        tr ',' '\n' | grep -c . || echo 1
}

worker() {
    local status tries=0 stopped="" child="" said
    if [[ -z ${JAX_COORDINATOR_ADDRESS:-}${TPU_WORKER_HOSTNAMES:-} ]] && (($(hosts) > 1)); then
        export JAX_DISTRIBUTED=1
    fi
    said=$(mktemp)
    trap 'stopped=yes; kill -TERM "$child" 2>/dev/null || true' TERM
    while true; do
        "$@" > >(tee "$said") &
        child=$!
        status=0
        while kill -0 "$child" 2>/dev/null; do wait "$child" && status=0 || status=$?; done
        # Asked to stop, bad input, or done: saved and stopped at a preemption notice is none of these.
        if [[ -n $stopped || $status == 2 ]]; then return "$status"; fi
        if [[ $status == 0 ]]; then
            sleep 0.2 && grep -q 'stopped and saved' "$said" || return 0
        elif ((++tries > ${RETRIES:-3})); then
            return "$status"
        fi
        echo "launch_tpu: status $status, again" >&2
        sleep "${PAUSE:-10}"
    done
}

# A JobSet restarts all hosts of a slice when one of them fails or is taken away; `worker` then goes on.
jobset() {
    local image=$1; shift
    need TPU GKE_ACCELERATOR GKE_TOPOLOGY GKE_HOSTS
    cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $TPU
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: ${RESTARTS:-100}
  replicatedJobs:
    - name: slice
      replicas: ${GKE_SLICES:-1}
      template:
        spec:
          parallelism: $GKE_HOSTS
          completions: $GKE_HOSTS
          backoffLimit: 0
          template:
            spec:
              restartPolicy: Never
              terminationGracePeriodSeconds: 120
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $GKE_ACCELERATOR
                cloud.google.com/gke-tpu-topology: $GKE_TOPOLOGY
                cloud.google.com/gke-spot: "${GKE_SPOT:-true}"
              containers:
                - name: worker
                  image: $image
                  workingDir: /lvr_jax
                  command: ["tools/launch_tpu.sh", "worker"$(printf ', "%s"' "$@")]
                  ports: [{containerPort: 8471}, {containerPort: 8080}]
                  resources:
                    limits: {google.com/tpu: ${GKE_CHIPS:-4}}
YAML
}

(($#)) || usage
case $1 in
    up | setup | all | keep | each | pull | worker | jobset | down) "$@" ;;
    *) usage ;;
esac
