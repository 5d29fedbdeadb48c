#!/bin/bash
#SBATCH --job-name=bhive-0123456789ab
#SBATCH --comment=TrainingTask_t1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=3
#SBATCH --cpus-per-task=6
#SBATCH --mem-per-cpu=2000M
#SBATCH --time=0-04:00:00
#SBATCH --output=job_%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120

set -e
exec /sw/bin/python -m bhive_mltf.slurm.batch_step /data/out/slurm/spec.json
