"""A real SLURM cluster of two nodes on this machine, for development and tests.

lab = cluster.up(Settings(accounting=True)); lab.environment; cluster.down(lab.directory)

One controller, two node daemons on loopback addresses, an authentication daemon of its own, and on demand an accounting
database. Nothing outside its directory is written, and no system service is touched.
"""

from bhive_mltf.testing.slurm_lab.cluster import Lab, down, find, up
from bhive_mltf.testing.slurm_lab.settings import Settings

__all__ = ["Lab", "Settings", "down", "find", "up"]
