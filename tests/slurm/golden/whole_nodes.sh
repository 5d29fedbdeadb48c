#!/bin/bash
#SBATCH --job-name=bhive-0123456789ab
#SBATCH --comment=TrainingTask_t1
#SBATCH --partition=a6000
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --mem=240000M
#SBATCH --time=0-12:00:00
#SBATCH --output=job_%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR2@180
#SBATCH --exclusive
#SBATCH --reservation=night

set -e
export NCCL_SOCKET_IFNAME==ens1f0
export GLOO_SOCKET_IFNAME=ens1f0
export NCCL_IB_HCA=mlx5
exec /sw/bin/python -m bhive_mltf.slurm.batch_step /data/out/slurm/spec.json
