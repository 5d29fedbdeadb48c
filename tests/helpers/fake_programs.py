"""sbatch, squeue, sacct, scancel and scontrol as one script; see `fake_scheduler`.

It is started hundreds of times: no import that it can do without.
"""

import fcntl
import json
import os
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
STATE = os.path.join(FOLDER, "state.json")


def main():
    name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
    with open(os.path.join(FOLDER, "lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        state = read(STATE)
        state["calls"].append([name, *arguments])
        failure = state["fails"].get(name)
        code = 0
        # what is taken although the answer is lost
        taken = failure and failure[0].startswith("TAKEN ")
        if not failure or taken:
            code = PROGRAMS[name](state, arguments)
        if failure:
            sys.stderr.write(f"{name}: error: {failure[0].removeprefix('TAKEN ')}\n")
            code = failure[1]
        write(STATE, json.dumps(state))
    return code


def text(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def read(path):
    return json.loads(text(path))


def write(path, content):
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)


def sbatch(state, arguments):
    lines = text(arguments[-1]).splitlines()
    options = dict(line[len("#SBATCH --") :].partition("=")[::2] for line in lines if line.startswith("#SBATCH --"))
    if options.get("partition") == "nowhere":
        sys.stderr.write("sbatch: error: Batch job submission failed: Invalid partition name specified\n")
        return 1
    job_id, state["next"] = str(state["next"]), state["next"] + 1
    job = {"state": "PENDING", "reason": "Priority", "status": 0, "restarts": 0, "submit": "2026-11-25T10:24:07"}
    where = {"name": options["job-name"], "environment": dict(os.environ), "folder": os.getcwd()}
    state["jobs"][job_id] = {**job, **where}
    sys.stdout.write(f"{job_id};cluster\n" if "--parsable" in arguments else f"Submitted batch job {job_id}\n")
    return 0


def squeue(state, arguments):
    jobs = {j: job for j, job in state["jobs"].items() if not job.get("left")}
    if "--format=%i" in arguments:
        sys.stdout.write("".join(f"{j}\n" for j, job in jobs.items() if job["state"] == "PENDING"))
        return 0
    for j, job in jobs.items():
        fields = (j, job["state"], job["reason"], job["status"], job["restarts"], job["submit"], "N/A", "n1", "main")
        sys.stdout.write("".join(f"{field}|" for field in (*fields, job["name"])) + "\n")
    return 0


def sacct(state, arguments):
    asked = next(a for a in arguments if a.startswith("--jobs=")).removeprefix("--jobs=").split(",")
    for j in asked:
        job = state["jobs"].get(j)
        if job:
            status = f"{job['status'] >> 8}:{job['status'] & 127}"
            fields = (j, job["state"], status, job["submit"], "Unknown", "n1", "main", job["name"])
            sys.stdout.write("|".join(fields) + "\n")
    return 0


def scancel(state, arguments):
    job = state["jobs"].get(arguments[-1])
    if job and job["state"] in ("PENDING", "RUNNING"):
        job["state"] = "CANCELLED"
    return 0


def scontrol(state, arguments):
    job = state["jobs"].get(arguments[-1])
    if arguments[0] == "requeue" and job:
        job.update(state="PENDING", restarts=job["restarts"] + 1)
        return 0
    if arguments[0] == "release" and job:
        job.update(reason="None")
        return 0
    if not job or job.get("left") == "purged":
        sys.stderr.write("slurm_load_jobs error: Invalid job id specified\n")
        return 1
    status = f"{job['status'] >> 8}:{job['status'] & 127}"
    sys.stdout.write(f"JobId={arguments[-1]} JobName={job['name']} JobState={job['state']} ExitCode={status}\n")
    return 0


PROGRAMS = {"sbatch": sbatch, "squeue": squeue, "sacct": sacct, "scancel": scancel, "scontrol": scontrol}

if __name__ == "__main__":
    sys.exit(main())
