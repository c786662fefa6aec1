#!/bin/bash
# All iterations of a run with generation in shards, as a chain of jobs; to be called where sbatch can be:
#
#   bash iterations.sh ITERATIONS SHARDS NODES recipe.yaml --output /shared/runs/mine
set -euo pipefail

here=$(dirname "$(realpath "$0")")
iterations=$1 shards=$2 nodes=$3
shift 3
after=()
for iteration in $(seq "$iterations"); do
    job=$(sbatch --parsable "${after[@]}" --array="1-$shards" "$here/shards.sbatch" "$@" --iteration "$iteration")
    job=$(sbatch --parsable --dependency="afterok:$job" --nodes=1 "$here/merge.sbatch" "$@" --iteration "$iteration")
    job=$(sbatch --parsable --dependency="afterok:$job" --nodes="$nodes" "$here/nodes.sbatch" train "$@" \
        --iteration "$iteration")
    after=(--dependency="afterok:$job")
done
# Every iteration is trained; what remains of the run is its evaluation.
sbatch --parsable "${after[@]}" --nodes=1 "$here/nodes.sbatch" run "$@"
