"""The jet factory: ROOT files of toy jets with known labels, the same bytes for the same arguments.

Layouts: `btag` (offline ntuples of the configs offline_run3, DeepJet_AK4, part_run3), `lost_tracks` (the same with the
branches of part_run3_lt, UParT_v0_run3 and mod_offline_run3), `hlt` (hlt_run3) and `jetclass` (the 41 branches of the
public data set). Lists have counter branches: uproot cannot write `std::vector`.
"""

from __future__ import annotations

from pathlib import Path

from bhive_mltf.testing import btag_jets, hlt_jets, jetclass_jets, lost_track_jets
from bhive_mltf.testing.root_files import write_tree


def write_btag(path: str | Path, n_jets: int, seed: int, process: str = "TT") -> Path:
    """A file of offline b-tagging jets; `process` (`TT` or `QCD`) decides flavours and pt spectrum."""
    return write_tree(path, btag_jets.TREE, btag_jets.btag_jets(n_jets, seed, process))


def write_lost_tracks(path: str | Path, n_jets: int, seed: int, process: str = "TT") -> Path:
    """A file of the jets of `write_btag` with lost tracks, hadronic taus and particle jets."""
    return write_tree(path, btag_jets.TREE, lost_track_jets.lost_track_jets(n_jets, seed, process))


def write_jetclass(path: str | Path, n_jets: int, seed: int, label: str = "label_QCD") -> Path:
    """A file of JetClass jets of one label; name it after the process (`jetclass_jets.PROCESSES`)."""
    return write_tree(path, jetclass_jets.TREE, jetclass_jets.jetclass_jets(n_jets, seed, label))


def write_hlt(path: str | Path, n_jets: int, seed: int, process: str = "TT") -> Path:
    """A file of trigger-level b-tagging jets, all flavours and taus alike."""
    return write_tree(path, hlt_jets.TREE, hlt_jets.hlt_jets(n_jets, seed, process))
