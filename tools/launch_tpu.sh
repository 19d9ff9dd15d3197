#!/usr/bin/env bash
# Starts a run on a TPU pod, keeps it there through preemptions, and brings its report back.
#
#     export TPU=lvr TPU_ZONE=us-east5-b TPU_TYPE=v5litepod-16 TPU_IMAGE=v2-alpha-tpuv5-lite
#     tools/launch_tpu.sh up                                # ask for the slice (spot) and wait for it
#     tools/launch_tpu.sh setup                             # this checkout and its packages on every host
#     tools/launch_tpu.sh doctor gs://bucket/lvr            # what every host has, and whether all have the same
#     tools/launch_tpu.sh all python tools/train.py --config configs/lvr.py:3b --workdir gs://bucket/lvr
#     tools/launch_tpu.sh keep python tools/train.py ...    # up, setup and all, again after every preemption
#     tools/launch_tpu.sh status                            # of the run, one line a host; also: logs [LINES], follow, stop
#     tools/launch_tpu.sh pull gs://bucket/audit/report report
#     tools/launch_tpu.sh jobset IMAGE python tools/train.py ... | kubectl apply -f -             # the same on GKE
#     tools/launch_tpu.sh down
#
# A run is detached: it goes on when this machine is switched off, and `follow` waits for it again. `worker COMMAND` is
# what runs on a host, on a TPU VM, in a pod of Kubernetes or by hand: it tells JAX of the other hosts, forwards SIGTERM
# to COMMAND, and starts it again until it has finished. A checkpoint is all that it needs.
#
# Exit status: 0 finished, 1 failed, 2 bad input or a request refused for good, 75 refused for now, 143 stopped before it
# had finished. Options by environment:
#
#     TPU_OPTIONS    of the request, instead of --spot          TPU_NODES   slices in one request (--node-count)
#     POLL      30   seconds between looks                      REFUSALS 10 refused requests in a row before `keep` ends
#     LAG      600   seconds that the service may call a lost   REFUSED 300 seconds before it asks again
#                    slice ACTIVE                               RETRIES   3 failures of a command without progress
#     NOTICE   120   seconds from a preemption's notice until   PAUSE    10 seconds before it is started again
#                    the machines are gone
set -euo pipefail

usage() { sed -n '4,13s/^# \{0,4\}//p' "$0" >&2; exit 2; }
say() { echo "launch_tpu: $*" >&2; }
need() { for name in "$@"; do [[ -n ${!name:-} ]] || { say "$name is not set"; exit 2; }; done; }
here() { cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd; }
tpus() { gcloud compute tpus "$@" --zone "$TPU_ZONE"; }
quoted() { printf '%q ' "$@"; }

# LOST: hosts that do not answer. OURS: what this script itself found wrong.
LOST=255 OURS=1 RUN=lvr_jax_run

# --- The slice --------------------------------------------------------------------------------------------------------

# The request's state, NONE if there is none, UNKNOWN if the service does not say (no network, no login).
state() {
    local said
    if said=$(tpus queued-resources describe "$TPU" --format 'value(state.state)' 2>&1); then
        echo "${said##*$'\n'}"
    elif grep -qi 'not.\?found' <<<"$said"; then
        echo NONE
    else
        say "$said"
        echo UNKNOWN
    fi
}

# Asks for the slice. 75: refused for now (quota, nothing free); 2: refused for good (a typing error, no permission).
request() {
    local said nodes=(--node-id "$TPU")
    ((${TPU_NODES:-1} == 1)) || nodes=(--node-count "$TPU_NODES" --node-prefix "$TPU")
    # shellcheck disable=SC2086     # several options
    said=$(tpus queued-resources create "$TPU" "${nodes[@]}" --accelerator-type "$TPU_TYPE" \
        --runtime-version "$TPU_IMAGE" ${TPU_OPTIONS---spot} 2>&1) && return 0
    say "the request was refused: $said"
    grep -qE 'RESOURCE_EXHAUSTED|[Qq]uota|UNAVAILABLE|[Nn]o more capacity|DEADLINE_EXCEEDED' <<<"$said" && return 75
    return 2
}

up() {
    need TPU TPU_ZONE TPU_TYPE TPU_IMAGE
    local now before="" unknown=0
    while true; do
        now=$(state)
        [[ $now == "$before" ]] || say "$TPU is $now"
        before=$now
        [[ $now == UNKNOWN ]] || unknown=0
        case $now in
            ACTIVE) return 0 ;;
            NONE) request || return ;;
            FAILED | SUSPENDING | SUSPENDED) down || say "$TPU could not be deleted yet" ;;
            ACCEPTED | PROVISIONING | CREATING | WAITING_FOR_RESOURCES | DELETING) ;;
            UNKNOWN) ((++unknown < 10)) || return "$OURS" ;;
            *) say "$TPU is $now, which is no state to wait in"; return "$OURS" ;;
        esac
        sleep "${POLL:-30}"
    done
}

down() { need TPU TPU_ZONE && tpus queued-resources delete "$TPU" --force --quiet; }

nodes() {
    if ((${TPU_NODES:-1} == 1)); then echo "$TPU"; else seq -f "$TPU-%.0f" 0 $((TPU_NODES - 1)); fi
}

# Whether the slice was taken away. The service may call it ACTIVE for minutes afterwards, and its hosts may answer for
# $1 seconds more: a slice that does not answer for LAG seconds counts as gone.
gone() {
    local begun=$SECONDS node
    while ((SECONDS - begun <= ${LAG:-600})); do
        case $(state) in ACTIVE | UNKNOWN) ;; *) return 0 ;; esac
        for node in $(nodes); do
            case $(tpus tpu-vm describe "$node" --format 'value(state)' 2>/dev/null) in
                PREEMPTED | TERMINATED | STOPPED | STOPPING | DELETING) down || true; return 0 ;;
            esac
        done
        if on_all true >/dev/null 2>&1 && ((SECONDS - begun >= $1)); then return 1; fi
        sleep "${POLL:-30}"
    done
    say "$TPU has not answered for ${LAG:-600} seconds"
    down || true
}

# --- Its hosts --------------------------------------------------------------------------------------------------------

on_all() {
    local node
    for node in $(nodes); do tpus tpu-vm ssh "$node" --worker=all --command "$1" </dev/null || return "$LOST"; done
}

# One line a host, "HOST STATE", however gcloud mixes them with its own. The command has no status of its own, so any
# other status than 0 is the connection's.
ask_all() {
    local said
    said=$(on_all "$1") || return "$LOST"
    grep -o 'lvr_jax_host .*' <<<"$said" | cut -d' ' -f2- | sort || true
}

# The image's Python may be too old: uv brings its own.
setup() {
    need TPU TPU_ZONE
    local archive node; archive=$(mktemp -d)/lvr_jax.tar.gz
    git -C "$(here)" archive --format tar.gz --prefix lvr_jax/ -o "$archive" HEAD
    for node in $(nodes); do tpus tpu-vm scp "$archive" "$node:" --worker=all </dev/null || return "$LOST"; done
    local said
    said=$(ask_all "lvr_jax/tools/launch_tpu.sh host_running 2>/dev/null || tar xzf lvr_jax.tar.gz
        lvr_jax/tools/launch_tpu.sh host_setup") || return
    if [[ -z $said ]] || grep -qv ' ready$' <<<"$said"; then
        say "setup failed: ${said:-no host answered}"
        return "$OURS"
    fi
}

host_setup() {
    local status=0
    if host_running; then tell "has a run, which uses its packages; stop it first"; return; fi
    {
        export PATH=$HOME/.local/bin:$PATH
        { command -v uv || python3 -m pip install --user -q uv ||
            python3 -m pip install --user -q --break-system-packages uv; } &&
            uv venv -q --clear --python 3.12 "$HOME/env" &&
            uv pip install -q --python "$HOME/env/bin/python" -e "$(here)[tpu]"
    } >"$HOME/setup.log" 2>&1 || status=$?
    ((status == 0)) && tell ready || tell "status $status: $(tail -n 1 "$HOME/setup.log")"
}

tell() { echo "lvr_jax_host $(hostname) $*"; }

# Status 2 if something is wrong, which `worker` does not try again.
doctor() {
    local status=0
    need TPU TPU_ZONE
    all python tools/doctor.py "$@" || status=$?
    ((status != 0)) || logs 40
    return "$status"
}

# --- The run ----------------------------------------------------------------------------------------------------------

all() { need TPU TPU_ZONE && begin "$@" && follow; }

# Preemption takes the machines away with all that runs on them: ask for new ones and say the same command again. A
# connection that breaks is none: the run goes on, and is followed again.
keep() {
    local status refused=0 ready="" broken=0 since=0
    while true; do
        status=0
        if [[ -z $ready ]]; then
            up || status=$?
            if ((status == 75 && ++refused <= ${REFUSALS:-10})); then
                say "asking again in ${REFUSED:-300} seconds"
                sleep "${REFUSED:-300}"
                continue
            fi
            ((status == 0)) || return "$status"
            refused=0
            if [[ $(status 2>/dev/null) == *" running"* ]]; then
                say "$TPU has a run already: this one, it is assumed"
            else
                setup || status=$?
                ((status != 0)) || begin "$@" || status=$?
            fi
            ((status != 0)) || ready=yes
        fi
        if [[ -n $ready ]]; then
            status=0
            follow || status=$?
            ((status != 0)) || return 0
        fi
        # A failure of the command itself. Stopped: perhaps by the notice of a preemption.
        ((status == LOST || status == 143)) || return "$status"
        if gone "$((status == 143 ? ${NOTICE:-120} : 0))"; then
            say "$TPU was preempted"
            ready="" broken=0
        elif ((status == 143)); then
            say "stopped before it had finished; the same command goes on from here"
            return 143
        elif [[ $(status) == *" died"* ]]; then
            say "hosts were started anew"
            stop >/dev/null || true
            ready=""
        else
            # A connection may break every hour for a week, but not again and again.
            ((SECONDS - since < 600)) || broken=0
            since=$SECONDS
            ((++broken <= 10)) || { say "hosts of $TPU answer, but not all of them or not to all"; return "$OURS"; }
        fi
    done
}

begin() {
    local said
    said=$(ask_all "lvr_jax/tools/launch_tpu.sh host_begin $(quoted "$@")") || return
    if [[ -z $said ]] || grep -qv ' started$' <<<"$said"; then
        say "not started: ${said:-no host answered}"
        return "$OURS"
    fi
    say "started on $(wc -l <<<"$said") hosts; it goes on without this machine (status, logs, follow, stop)"
}

# Waits for the run that is there and returns its status: 0 if it finished on every host, LOST if hosts are gone.
follow() {
    need TPU TPU_ZONE
    local said status silent=0
    while true; do
        if said=$(ask_all "lvr_jax/tools/launch_tpu.sh host_state"); then
            silent=0
            if ! grep -q ' running$' <<<"$said"; then
                status=$(worst "$said")
                ((status == 0)) || { echo "$said"; logs 20; } >&2 || true
                return "$status"
            fi
        elif ((++silent >= ${SILENT:-3})); then
            return "$LOST"
        fi
        sleep "${POLL:-30}"
    done
}

# What the hosts' statuses say of the run: bad input before failures, these before a stop, and that before success.
worst() {
    local ended; ended=$(sed -n 's/.* ended //p' <<<"$1")
    if [[ -z $1 ]] || grep -q ' died$' <<<"$1"; then
        echo "$LOST"
    elif grep -qx 2 <<<"$ended"; then
        echo 2
    elif grep -qvxE '0|143' <<<"$ended"; then
        grep -vxE '0|143' <<<"$ended" | head -n 1
    else
        sort -n <<<"$ended" | tail -n 1
    fi
}

status() { need TPU TPU_ZONE && ask_all "lvr_jax/tools/launch_tpu.sh host_state"; }
logs() { need TPU TPU_ZONE && on_all "lvr_jax/tools/launch_tpu.sh host_logs ${1:-20}"; }
stop() { need TPU TPU_ZONE && ask_all "lvr_jax/tools/launch_tpu.sh host_stop"; }

pull() { mkdir -p "$2" && gcloud storage rsync --recursive "$1" "$2"; }

# --- On a host --------------------------------------------------------------------------------------------------------

host_running() {
    local pid; pid=$(cat "$HOME/$RUN/pid" 2>/dev/null) || return 1
    # After a restart of the machine the number may be another process's.
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q host_run
}

host_begin() {
    if host_running; then tell "has a run already; stop it first"; return; fi
    mkdir -p "$HOME/$RUN"
    rm -f "$HOME/$RUN/status"
    local script; script=$(here)/tools/launch_tpu.sh
    cd "$(here)"
    # shellcheck disable=SC1091     # made by setup
    . "$HOME/env/bin/activate"
    setsid nohup "$script" host_run "$@" </dev/null >>"$HOME/$RUN/log" 2>&1 &
    echo $! >"$HOME/$RUN/pid"
    until host_running || [[ -e $HOME/$RUN/status ]]; do
        kill -0 $! 2>/dev/null || [[ -e $HOME/$RUN/status ]] ||
            { tell "could not start: $(tail -n 1 "$HOME/$RUN/log")"; return; }
        sleep 0.05
    done
    tell started
}

host_run() {
    local status=0
    echo "launch_tpu: $(date -u +%FT%TZ) $(quoted "$@")"
    worker "$@" || status=$?
    echo "$status" >"$HOME/$RUN/status.new"
    mv "$HOME/$RUN/status.new" "$HOME/$RUN/status"
    echo "launch_tpu: $(date -u +%FT%TZ) ended with status $status"
}

host_state() {
    if [[ -e $HOME/$RUN/status ]]; then
        tell "ended $(cat "$HOME/$RUN/status")"
    elif host_running; then
        tell running
    elif [[ -e $HOME/$RUN/pid && ! -e $HOME/$RUN/status ]]; then
        tell died
    else
        tell "has no run"
    fi
}

host_logs() { tail -n "$1" "$HOME/$RUN/log" | sed "s/^/$(hostname): /"; }

host_stop() {
    host_running && kill -TERM "$(cat "$HOME/$RUN/pid")"
    host_state
}

# How many hosts does this machine's slice have? TPU VMs say so on their metadata server only.
hosts() {
    compgen -G '/dev/accel*' >/dev/null || compgen -G '/dev/vfio/*' >/dev/null || { echo 1; return; }
    curl -sf --max-time 5 -H Metadata-Flavor:Google \
        http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints |
        tr ',' '\n' | grep -c . || echo 1
}

# Sets `status` to the worker's child's, which may have ended long ago. A signal ends `wait` early, so it is asked again;
# of a child whose status was read already it says 127.
ended() {
    local found
    status=127 woken=yes
    while [[ -n $woken ]]; do
        woken="" found=0
        wait "$child" || found=$?
        ((found == 127)) || status=$found
    done
}

# Runs a command until it has finished, its input is bad, or this process is asked to stop. A command that ends with 143
# was stopped by another host's notice. Failures are counted anew after progress: train.py writes its latest checkpoint's
# step to the file that LVR_JAX_PROGRESS names.
worker() {
    local status tries=0 child="" reached="" woken
    stopped=""
    if [[ -z ${JAX_COORDINATOR_ADDRESS:-}${TPU_WORKER_HOSTNAMES:-}${JAX_DISTRIBUTED:-} ]] && (($(hosts) > 1)); then
        export JAX_DISTRIBUTED=1
    fi
    LVR_JAX_PROGRESS=$(mktemp)
    export LVR_JAX_PROGRESS
    trap 'stopped=yes woken=yes; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM
    while true; do
        "$@" &
        child=$!
        # Asked to stop when the trap did not know of this child yet.
        [[ -z $stopped ]] || kill -TERM "$child" 2>/dev/null || true
        ended
        if [[ -n $stopped || $status == 0 || $status == 2 ]]; then return "$status"; fi
        if [[ $(cat "$LVR_JAX_PROGRESS") != "$reached" ]]; then
            reached=$(cat "$LVR_JAX_PROGRESS")
            tries=0
        fi
        if ((status != 143 && ++tries > ${RETRIES:-3})); then return "$status"; fi
        say "status $status, again"
        sleep "${PAUSE:-10}" &
        child=$!
        wait "$child" || true
        [[ -z $stopped ]] || return 143
    done
}

# --- GKE --------------------------------------------------------------------------------------------------------------

# A text as JSON, which YAML reads: quotes, backslashes and line ends of a command are its own.
json() {
    local text=$1
    text=${text//\\/\\\\} text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
    text=${text//'$('/'$$('}         # Kubernetes would put a variable there
    if grep -q '[[:cntrl:]]' <<<"$text"; then say "$(printf %q "$1"): unexpected control character"; exit 2; fi
    printf '"%s"' "$text"
}

# A JobSet restarts all hosts of a slice when one of them fails or is taken away; `worker` then goes on.
jobset() {
    local image word command; image=$(json "$1"); shift
    need TPU GKE_ACCELERATOR GKE_TOPOLOGY GKE_HOSTS
    command='"tools/launch_tpu.sh", "worker"'
    for word in "$@"; do command+=", $(json "$word")" || exit; done
    for word in GKE_HOSTS GKE_SLICES GKE_CHIPS RESTARTS; do
        [[ ${!word:-0} =~ ^[0-9]+$ ]] || { say "$word is ${!word}, expected a whole number"; exit 2; }
    done
    cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(json "$TPU")
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
                cloud.google.com/gke-tpu-accelerator: $(json "$GKE_ACCELERATOR")
                cloud.google.com/gke-tpu-topology: $(json "$GKE_TOPOLOGY")
                cloud.google.com/gke-spot: $(json "${GKE_SPOT:-true}")
              containers:
                - name: worker
                  image: $image
                  workingDir: /lvr_jax
                  command: [$command]
                  ports: [{containerPort: 8471}, {containerPort: 8080}]
                  resources:
                    limits: {google.com/tpu: ${GKE_CHIPS:-4}}
YAML
}

(($#)) || usage
case $1 in
    all | keep | worker) (($# > 1)) || { say "$1: expected a command"; exit 2; } ;;
    jobset) (($# > 2)) || { say "jobset: expected an image and a command"; exit 2; } ;;
esac
case $1 in
    up | setup | doctor | all | keep | follow | status | logs | stop | pull | worker | jobset | down) "$@" ;;
    host_setup | host_begin | host_run | host_running | host_state | host_logs | host_stop) "$@" ;;
    *) usage ;;
esac
