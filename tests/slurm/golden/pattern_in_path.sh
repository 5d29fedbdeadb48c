#!/bin/bash
#SBATCH --job-name=bhive-0123456789ab
#SBATCH --comment=TrainingTask_t1
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2000M
#SBATCH --time=0-04:00:00
#SBATCH --output=/dev/null
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@120

set -e
exec >> "job_$SLURM_JOB_ID.log" 2>&1
exec /sw/bin/python -m bhive_mltf.slurm.batch_step '/data/50%j\n/slurm/spec.json'
