"""Upstream's module names, for `law.cfg` files that name them; the task classes are in `bhive_mltf.law.tasks`."""
