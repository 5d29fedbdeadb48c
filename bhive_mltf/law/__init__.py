"""Everything that imports law or luigi: parameters, messages, targets, workflows, and in `tasks` the task classes."""
