#!/usr/bin/env bash
# A B-Hive training as a job of the gateway: all outputs lie where checkpoints are expected, so that the same command
# goes on after a time limit. `join` runs law once, and its ranks in all places of the job.
set -euo pipefail
export DATA_PATH="${MLTF_CHECKPOINT_DIR:?started by the gateway only}/bhive"
export LAW_HOME="$DATA_PATH/.law" LAW_CONFIG_FILE="$PWD/law.cfg"
exec bhive-mltf join law run bhive_mltf.law.tasks.training.TrainingTask --dataset-version v1 --training-version t1 --n-threads 0 \
    --TrainingTask-loss-weighting True "$@"
