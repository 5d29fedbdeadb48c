#!/bin/bash
#SBATCH --job-name=bhive-ced6dd350bd0
#SBATCH --comment=TrainingTask_half
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2000M
#SBATCH --time=0-01:00:00
#SBATCH --output=job_%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120

set -e
export DATA_PATH=/data/output
exec python3 -m bhive_mltf.slurm.inside /data/output/TrainingTask/compat/s/half/DeepJetTransformer/epochs_3/kwargs_b36b1840fd/nominal/slurm/spec.json
