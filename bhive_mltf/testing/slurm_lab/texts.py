"""The configuration files of a lab, as pure functions of its settings."""

from __future__ import annotations

from bhive_mltf.testing.slurm_lab.settings import Settings

DATABASE = "slurm_acct"


def slurm_conf(lab: Settings) -> str:
    """`slurm.conf`: quick scheduling, short waits after a requeue, preemption of `main` by `urgent`.

    Job ids of labs on one machine differ, since ranks meet at a port that is chosen by them.
    """
    run, log = lab.folder("run"), lab.folder("log")
    names = ",".join(name for name, _ in lab.nodes)
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr={address} Port={lab.port + 4 + number} CPUs={lab.cpus} "
        f"RealMemory={lab.memory_mb} State=UNKNOWN{f' Gres=gpu:{lab.gpus}' if lab.gpus else ''}"
        for number, (name, address) in enumerate(lab.nodes)
    )
    return f"""\
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={lab.port}
SlurmUser={lab.user}
SlurmdUser={lab.user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={run}/munge.socket,cred_expire=5
StateSaveLocation={lab.folder("state")}
SlurmdSpoolDir={lab.directory}/spool.%n
SlurmctldPidFile={run}/slurmctld.pid
SlurmdPidFile={run}/slurmd.%n.pid
SlurmctldLogFile={log}/slurmctld.log
SlurmdLogFile={log}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge={lab.keep_jobs_s}
FirstJobId={lab.port % 1000 * 100 + 1}
KillWait=5
SlurmctldTimeout=10
SlurmdTimeout=30
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
{_accounting(lab)}{"GresTypes=gpu" if lab.gpus else "# no GPUs"}
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20 State=UP
PartitionName=short Nodes={names} MaxTime=10 PriorityTier=1 State=UP
PartitionName=urgent Nodes={names} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF State=UP
"""


def _accounting(lab: Settings) -> str:
    if not lab.accounting:
        return (
            "AccountingStorageType=accounting_storage/none\n"
            f"JobCompType=jobcomp/filetxt\nJobCompLoc={lab.folder('log')}/jobcomp.txt\n"
        )
    resources = "AccountingStorageTRES=gres/gpu\n" if lab.gpus else ""
    return (
        "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\n"
        f"AccountingStoragePort={lab.port + 1}\n{resources}"
        f"AccountingStoragePass={lab.folder('run')}/munge.socket\nJobCompType=jobcomp/none\n"
    )


def slurmdbd_conf(lab: Settings) -> str:
    """`slurmdbd.conf`; SLURM wants it readable by its user alone."""
    run = lab.folder("run")
    return f"""\
AuthType=auth/munge
AuthInfo=socket={run}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={lab.port + 1}
SlurmUser={lab.user}
PidFile={run}/slurmdbd.pid
LogFile={lab.folder("log")}/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={lab.port + 2}
StorageUser=slurm
StoragePass=slurm
StorageLoc={DATABASE}
"""


def gres_conf(lab: Settings) -> str:
    """`gres.conf`: GPUs are device files of the lab as root, terminals otherwise: SLURM wants devices."""
    files = f"{lab.folder('dev')}/gpu" if lab.is_root else "/dev/tty"
    return f"Name=gpu File={files}[0-{lab.gpus - 1}]\n" if lab.gpus else ""


def hosts(lab: Settings) -> str:
    """`/etc/hosts` as the daemons see it where nodes have names."""
    return "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name, address in lab.nodes)
