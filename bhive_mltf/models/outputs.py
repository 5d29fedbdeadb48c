"""Names of the regression outputs of the multi-task taggers. No torch here: tasks read it too.

They are ratios to the transverse momentum of the jet; see `bhive_mltf.models.regression`.
"""

from __future__ import annotations

OFFLINE_OUTPUTS = ("pt", "pt_q16", "pt_q84", "pt_with_neutrinos")
"""Of the visible particles: centre, 16 % and 84 % quantile; of all particles: centre."""

HLT_OUTPUTS = ("pt",)
"""Of the visible particles; for a tau, of the visible part of its decay."""
