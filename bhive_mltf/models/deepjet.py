"""DeepJet and its trigger version.

E. Bols et al., "Jet flavour classification using DeepJet", arXiv:2008.10519; layers and constants as in B-Hive.
Its batch norms and LSTM see padded candidates: inputs are padded to the configured length.

Axes: B jets, N candidates, F columns, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bhive_mltf.models.base import Tagger, fraction
from bhive_mltf.models.classes import HLT, OFFLINE, OFFLINE_UD
from bhive_mltf.models.layers import batch_norm
from bhive_mltf.models.resolve import GLOBAL, GroupRequest

if TYPE_CHECKING:
    from bhive_mltf.config import Config
    from bhive_mltf.interface import Batch

NORM_EPS = 1e-3
CONVOLUTIONS = {"cpf": (64, 32, 32, 8), "npf": (32, 16, 4), "vtx": (64, 32, 32, 8)}
RECURRENT = {"cpf": 150, "npf": 50, "vtx": 50}
DENSE = (200, *(100,) * 8)

HLT_CPF = (
    "jet_pfcand_deta",
    "jet_pfcand_dphi",
    "jet_pfcand_pt_log",
    "jet_pfcand_energy_log",
    "jet_pfcand_eta",
    "jet_pfcand_charge",
    "jet_pfcand_frompv",
    "jet_pfcand_nlostinnerhits",
    "jet_pfcand_track_chi2",
    "jet_pfcand_track_qual",
    "jet_pfcand_dz",
    "jet_pfcand_dzsig",
    "jet_pfcand_dxy",
    "jet_pfcand_dxysig",
    "jet_pfcand_etarel",
    "jet_pfcand_pperp_ratio",
    "jet_pfcand_ppara_ratio",
    "jet_pfcand_trackjet_d3d",
    "jet_pfcand_trackjet_d3dsig",
    "jet_pfcand_trackjet_dist",
    "jet_pfcand_trackjet_decayL",
    "jet_pfcand_npixhits",
    "jet_pfcand_nstriphits",
)
HLT_VTX = (
    "jet_sv_deta",
    "jet_sv_dphi",
    "jet_sv_pt_log",
    "jet_sv_mass",
    "jet_sv_eta",
    "jet_sv_ntrack",
    "jet_sv_chi2",
    "jet_sv_dxy",
    "jet_sv_dxysig",
    "jet_sv_d3d",
    "jet_sv_d3dsig",
)

MOD_GLOBAL = (
    "jet_px",
    "jet_py",
    "jet_pz",
    "jet_energy",
    "jet_mass",
    "n_Cpfcand",
    "n_Npfcand",
    "nsv",
    "npv",
    "TagVarCSV_trackSumJetEtRatio",
    "TagVarCSV_trackSumJetDeltaR",
    "TagVarCSV_vertexCategory",
    "TagVarCSV_trackSip2dValAboveCharm",
    "TagVarCSV_trackSip2dSigAboveCharm",
    "TagVarCSV_trackSip3dValAboveCharm",
    "TagVarCSV_trackSip3dSigAboveCharm",
    "TagVarCSV_jetNSelectedTracks",
    "TagVarCSV_jetNTracksEtaRel",
)
MOD_CPF = (
    "Cpfcan_px",
    "Cpfcan_py",
    "Cpfcan_pz",
    "Cpfcan_e",
    "Cpfcan_mass",
    "Cpfcan_BtagPf_trackEtaRel",
    "Cpfcan_BtagPf_trackPtRel",
    "Cpfcan_BtagPf_trackPPar",
    "Cpfcan_BtagPf_trackDeltaR",
    "Cpfcan_BtagPf_trackPParRatio",
    "Cpfcan_BtagPf_trackSip2dVal",
    "Cpfcan_BtagPf_trackSip2dSig",
    "Cpfcan_BtagPf_trackSip3dVal",
    "Cpfcan_BtagPf_trackSip3dSig",
    "Cpfcan_BtagPf_trackJetDistVal",
    "Cpfcan_ptrel",
    "Cpfcan_drminsv",
    "Cpfcan_VTX_ass",
    "Cpfcan_puppiw",
    "Cpfcan_chi2",
    "Cpfcan_quality",
)
MOD_NPF = (
    "Npfcan_px",
    "Npfcan_py",
    "Npfcan_pz",
    "Npfcan_e",
    "Npfcan_mass",
    "Npfcan_ptrel",
    "Npfcan_deltaR",
    "Npfcan_isGamma",
    "Npfcan_HadFrac",
    "Npfcan_drminsv",
    "Npfcan_puppiw",
)
MOD_VTX = (
    "sv_px",
    "sv_py",
    "sv_pz",
    "sv_e",
    "sv_mass",
    "sv_deltaR",
    "sv_ntracks",
    "sv_chi2",
    "sv_normchi2",
    "sv_dxy",
    "sv_dxysig",
    "sv_d3d",
    "sv_d3dsig",
    "sv_costhetasvpv",
    "sv_enratio",
)


class Layer(nn.Module):
    """Linear map of each row, ReLU, batch norm, dropout. A convolution of kernel 1 over candidates is the same."""

    def __init__(self, before: int, after: int, dropout: float, momentum: float) -> None:
        super().__init__()
        self.linear = nn.Linear(before, after)
        self.norm = nn.BatchNorm1d(after, eps=NORM_EPS, momentum=momentum)
        self.dropout = nn.Dropout(dropout)

    def forward(self, rows: Tensor) -> Tensor:
        """[M,before] -> [M,after]."""
        dropped: Tensor = self.dropout(batch_norm(self.norm, self.linear(rows).relu()))
        return dropped


class Branch(nn.Module):
    """Candidates of one group -> summary of the jet: batch norm, convolutions, LSTM from the last to the first.

    The last convolution has neither batch norm nor dropout.
    """

    def __init__(self, n_columns: int, widths: Sequence[int], recurrent: int, dropout: float, momentum: float) -> None:
        super().__init__()
        self.norm_in = nn.BatchNorm1d(n_columns, eps=NORM_EPS, momentum=momentum)
        sizes = (n_columns, *widths[:-1])
        self.layers = nn.Sequential(*(Layer(before, after, dropout, momentum) for before, after in pairwise(sizes)))
        self.last = nn.Linear(sizes[-1], widths[-1])
        self.lstm = nn.LSTM(widths[-1], recurrent, batch_first=True)
        self.norm_out = nn.BatchNorm1d(recurrent, eps=NORM_EPS, momentum=momentum)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Summary [B,recurrent] of candidates [B,N,F], padded ones included."""
        rows = self.layers(batch_norm(self.norm_in, features.flatten(0, 1)))
        candidates = self.last(rows).relu().unflatten(0, features.shape[:2])
        steps, _ = self.lstm(candidates.flip(1))
        summary: Tensor = self.dropout(batch_norm(self.norm_out, steps[:, -1]))
        return summary


class DeepJetTagger(Tagger):
    """Common part: one branch for each group of candidates, dense layers on top.

    Parameters
    ----------
    dropout : after each batch norm but the input's.
    batch_norm_momentum : weight of the new batch in the running statistics. B-Hive's 0.6 is Keras's number, which
        there is the weight of the old ones; 0.4 is what it meant.
    """

    padding = "configured"

    def __init__(self, config: Config, *, dropout: float = 0.1, batch_norm_momentum: float = 0.6) -> None:
        super().__init__(config)
        fraction(self.name, dropout=dropout, batch_norm_momentum=batch_norm_momentum)
        jet = [group for group in self.inputs.groups if group.name == GLOBAL]
        candidates = [group for group in self.inputs.groups if group.name != GLOBAL]
        n_jet = sum(len(group.columns) for group in jet)
        self.norm_global = nn.BatchNorm1d(n_jet, eps=NORM_EPS, momentum=batch_norm_momentum) if jet else nn.Identity()
        self.has_global = bool(jet)
        self.branches = nn.ModuleDict(
            {
                group.name: Branch(
                    len(group.columns),
                    CONVOLUTIONS[group.name],
                    RECURRENT[group.name],
                    dropout,
                    batch_norm_momentum,
                )
                for group in candidates
            }
        )
        sizes = (n_jet + sum(RECURRENT[group.name] for group in candidates), *DENSE)
        self.dense = nn.Sequential(*(Layer(*pair, dropout, batch_norm_momentum) for pair in pairwise(sizes)))
        self.head = nn.Linear(sizes[-1], len(self.classes))

    def forward(self, batch: Batch) -> Tensor:
        """Logits [B,C]."""
        parts = [branch(self.features(batch, name)) for name, branch in self.branches.items()]
        if self.has_global:
            parts.insert(0, batch_norm(self.norm_global, self.features(batch, GLOBAL).flatten(1)))
        logits: Tensor = self.head(self.dense(torch.cat(parts, dim=1)))
        return logits


class DeepJet(DeepJetTagger):
    """DeepJet on all columns of jet, charged and neutral candidates and vertices; 276,552 parameters on DeepJet_AK4."""

    classes = OFFLINE_UD
    groups = tuple(GroupRequest(name) for name in (GLOBAL, "cpf", "npf", "vtx"))


class DeepJetHLT(DeepJetTagger):
    """DeepJet of the trigger from its own charged and vertex columns; 251,690 parameters."""

    classes = HLT
    groups = (GroupRequest("cpf", columns=HLT_CPF), GroupRequest("vtx", columns=HLT_VTX))


class MoDJet(DeepJetTagger):
    """DeepJet on Cartesian momenta and masses in place of jet pt, eta and vertex pt."""

    classes = OFFLINE
    groups = (
        GroupRequest(GLOBAL, columns=MOD_GLOBAL),
        GroupRequest("cpf", columns=MOD_CPF),
        GroupRequest("npf", columns=MOD_NPF),
        GroupRequest("vtx", columns=MOD_VTX),
    )
