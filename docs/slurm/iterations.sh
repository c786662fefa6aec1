#!/bin/bash
# Runs all iterations with generation in shards, as a chain of jobs. Call it where sbatch is available:
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
# All iterations are trained at this point; only the evaluation remains.
sbatch --parsable "${after[@]}" --nodes=1 "$here/nodes.sbatch" run "$@"
