"""The jet factory: ROOT files of toy jets with known labels, the same bytes for the same arguments.

Layouts: `btag` (offline ntuples of the configs offline_run3, DeepJet_AK4, part_run3), `hlt` (hlt_run3) and `jetclass`
(the 41 branches of the public data set). Lists have counter branches: uproot cannot write `std::vector`.
"""

from __future__ import annotations

from pathlib import Path

from bhive_mltf.testing import btag_jets, hlt_jets, jetclass_jets
from bhive_mltf.testing.root_files import write_tree


def write_btag(path: str | Path, n_jets: int, seed: int, process: str = "TT") -> Path:
    """A file of offline b-tagging jets; `process` (`TT` or `QCD`) decides flavours and pt spectrum."""
    return write_tree(path, btag_jets.TREE, btag_jets.btag_jets(n_jets, seed, process))


def write_jetclass(path: str | Path, n_jets: int, seed: int, label: str = "label_QCD") -> Path:
    """A file of JetClass jets of one label; name it after the process (`jetclass_jets.PROCESSES`)."""
    return write_tree(path, jetclass_jets.TREE, jetclass_jets.jetclass_jets(n_jets, seed, label))


def write_hlt(path: str | Path, n_jets: int, seed: int, process: str = "TT") -> Path:
    """A file of trigger-level b-tagging jets, all flavours and taus alike."""
    return write_tree(path, hlt_jets.TREE, hlt_jets.hlt_jets(n_jets, seed, process))
