#!/bin/bash
# One part of a cohort in each job of an array:
#
#   STUDIES=/data/studies TEXT="both lungs" OUT=/data/cohort sbatch deploy/slurm/cohort.sh
#
# All nodes need STUDIES and OUT under these paths. Submitted again, it does what is missing. When all jobs have ended,
# `medclipsam cohort report "$OUT"` writes the table and the report.
#SBATCH --job-name=medclipsam-cohort
#SBATCH --array=1-40
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --requeue
# Workers end the study that they have in hand when the time is nearly over; add --gres=gpu:1 for a GPU.
#SBATCH --signal=B:TERM@120
set -euo pipefail

: "${STUDIES:?name the studies: STUDIES=/path or URL}" "${TEXT:?say what is looked for: TEXT=...}" "${OUT:?name a folder: OUT=/path}"

"${MEDCLIPSAM:-medclipsam}" cohort run --studies "$STUDIES" --text "$TEXT" --out "$OUT" \
    --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" --workers 1 \
    --cpus-per-worker "${SLURM_CPUS_PER_TASK:-4}" "$@" &
# bash passes signals on only while it waits
trap 'kill -TERM $!' TERM
wait $! || wait $!
