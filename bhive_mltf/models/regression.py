"""Transverse momenta of the particle jet over that of the jet: what the multi-task taggers learn beside classes.

Axes: B jets, R outputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bhive_mltf.interface import Batch
    from bhive_mltf.models.base import Tagger

OFFLINE_COLUMNS = ("jet_pt", "gen_pt", "gen_pt_WithNu")
HLT_COLUMNS = ("jet_pt", "jet_genmatch_pt", "jet_genmatch_lep_vis_pt")
HLT_TAUS = ("taup", "taum")

LOWEST, HIGHEST = 0.3, 2.0


def bounded_ratio(generated: Tensor, measured: Tensor) -> Tensor:
    """Ratio generated / measured in [0.3, 2]; 0.3 where it is not a number."""
    return torch.nan_to_num(generated / measured).clamp(LOWEST, HIGHEST)


def offline_targets(columns: Tensor) -> Tensor:
    """Targets [B,4] of `classes.OFFLINE_OUTPUTS` from `OFFLINE_COLUMNS` [B,3]."""
    measured, visible, full = columns.unbind(1)
    centre = bounded_ratio(visible, measured)
    return torch.stack((centre, centre, centre, bounded_ratio(full, measured)), dim=1)


def hlt_targets(columns: Tensor, is_tau: Tensor) -> Tensor:
    """Targets [B,1] of `classes.HLT_OUTPUTS` from `HLT_COLUMNS` [B,3]: for a tau [B] the visible part of its decay."""
    measured, jet, tau = columns.unbind(1)
    return bounded_ratio(torch.where(is_tau, tau, jet), measured)[:, None]


def hlt_tagger_targets(tagger: Tagger, batch: Batch) -> Tensor:
    """Targets [B,1] of a tagger with the classes of the trigger."""
    names = list(tagger.classes)
    plus, minus = (batch.target == names.index(name) for name in HLT_TAUS)
    return hlt_targets(tagger.jet_columns(batch, HLT_COLUMNS), plus | minus)
