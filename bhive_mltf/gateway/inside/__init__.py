"""What runs on the nodes of a job: the launcher outside the sandbox, and what it puts inside.

The standard library only, besides what ranks of a job leave for its batch step.
"""
