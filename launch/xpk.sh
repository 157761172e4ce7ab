#!/usr/bin/env bash
# One or several TPU slices on GKE, with xpk (pip install xpk; it needs gcloud, kubectl and docker).
#
#   gke="--cluster=pod --zone=us-west4-a --project=my-project"
#   launch/xpk.sh cluster $gke --type=v5litepod-16 --num-slices=2 --spot        # once
#   launch/xpk.sh image --image=REPOSITORY/sedd:1           # build from a checkout, and push
#   launch/xpk.sh workload $gke --type=v5litepod-16 --num-slices=2 --workload=text8 \
#     --image=REPOSITORY/sedd:1 --storage=my-bucket \
#     sedd train --config=text8 --workdir=/bucket/text8
#   launch/xpk.sh list $gke
#   launch/xpk.sh logs $gke --workload=text8 [--slice=0 --worker=0]
#   launch/xpk.sh delete $gke --workload=text8 [--yes]
#
# --type=T         type of a slice: v5litepod-16, v5p-32, v6e-64, tpu7x-16, ...
# --num-slices=N   default 1; several are joined over the data centre's network: set
#                  --config.mesh.replica
# --spot, --on-demand, --reservation=NAME   kind of capacity of a cluster's slices
# --storage=NAME   storage of a workload, from `xpk storage attach`, which sets the mount point
# --restarts=N     restarts of a workload (100) after a lost slice, a crash or SIGTERM (code 143)
# --grace=S        seconds between SIGTERM and the kill (300), in which the run saves
# --extra=cuda     extra of the image, instead of tpu
# --dry-run        prints the commands and runs nothing
#
# --workdir and data must be in a --storage, which all workers share; the trainer takes no gs://.
# A user error (exit code 2) is not restarted. A name is in use until its workload is deleted.
set -u
# shellcheck source=common.sh
. "$(dirname "$0")/common.sh"

cluster='' zone='' project='' type='' slices=1 image='' workload='' storage=() capacity=()
restarts=100 grace=300 extra=tpu slice=0 worker=0 yes='' dry_run=''
verb=${1:-}
[ $# -eq 0 ] || shift
while [ $# -gt 0 ]; do
  case $1 in
    --cluster=*) cluster=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --num-slices=*) slices=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    --workload=*) workload=${1#*=} ;;
    --storage=*) storage+=("$1") ;;
    --spot | --on-demand | --reservation=*) capacity+=("$1") ;;
    --restarts=*) restarts=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --extra=*) extra=${1#*=} ;;
    --slice=*) slice=${1#*=} ;;
    --worker=*) worker=${1#*=} ;;
    --yes) yes=yes ;;
    --dry-run) dry_run=yes ;;
    -*) fail "unknown option $1; --help shows all" ;;
    *) break ;;
  esac
  shift
done
whole --num-slices "$slices"
whole --restarts "$restarts"
whole --grace "$grace"
whole --slice "$slice"
whole --worker "$worker"
root=$(cd "$(dirname "$0")/.." && pwd)

need() { # need OPTION VALUE...
  while [ $# -gt 1 ]; do
    [ -n "$2" ] || fail "--$1 is missing; --help shows examples"
    shift 2
  done
}
case $verb in
  image)
    need image "$image"
    [ -f "$root/launch/Dockerfile" ] || fail "image needs a checkout, which it copies into the image"
    ;;
  cluster) need cluster "$cluster" zone "$zone" type "$type" ;;
  workload)
    need cluster "$cluster" zone "$zone" type "$type" workload "$workload" image "$image"
    [ $# -gt 0 ] || fail "the command is missing: workload ... sedd train ..."
    ;;
  list) need cluster "$cluster" zone "$zone" ;;
  logs | delete) need cluster "$cluster" zone "$zone" workload "$workload" ;;
  --help) usage && exit ;;
  '') usage >&2 && exit 2 ;;
  *) fail "unknown verb $verb; --help shows all" ;;
esac
[ "$verb" = workload ] || [ $# -eq 0 ] || fail "$verb takes no $1"
[[ -z $workload || ($workload =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#workload} -le 40) ]] ||
  fail "--workload=$workload must be at most 40 of a-z, 0-9 and -, and start with a letter"
place=("--cluster=$cluster" "--zone=$zone" ${project:+"--project=$project"})

case $verb in
  cluster)
    [ ${#capacity[@]} -eq 1 ] || fail "give one of --spot, --on-demand, --reservation=NAME"
    run xpk cluster create "${place[@]}" "--tpu-type=$type" "--num-slices=$slices" "${capacity[@]}"
    ;;
  image)
    run docker build --platform=linux/amd64 "--file=$root/launch/Dockerfile" \
      "--build-arg=EXTRA=$extra" "--tag=$image" "$root" && run docker push "$image"
    ;;
  workload)
    # xpk runs the command in a background shell, which gets SIGTERM: with exec that is the trainer
    # itself. xpk restarts after codes from 127 on; a lost peer leads to code 1.
    run xpk workload create "${place[@]}" "--workload=$workload" "--tpu-type=$type" \
      "--num-slices=$slices" "--docker-image=$image" "--command=exec $(quote "$@")" \
      "--max-restarts=$restarts" --restart-on-exit-codes=1 \
      "--termination-grace-period-seconds=$grace" "${storage[@]}"
    ;;
  list) run xpk workload list "${place[@]}" ;;
  logs)
    # xpk's clusters are regional: us-west4-a is a zone of us-west4.
    labels=jobset.sigs.k8s.io/jobset-name=$workload,jobset.sigs.k8s.io/job-index=$slice
    labels+=,batch.kubernetes.io/job-completion-index=$worker
    run gcloud container clusters get-credentials "$cluster" "--location=${zone%-*}" \
      ${project:+"--project=$project"} &&
      run kubectl logs --follow --tail=-1 "--selector=$labels" --container=jax-tpu
    ;;
  delete)
    # xpk asks for confirmation.
    run xpk workload delete "${place[@]}" "--workload=$workload" ${yes:+--force}
    ;;
esac
