"""Features that are counts, flags, codes or charges: an attack with `reduce` leaves them as they are.

Offline, lost-track and HLT features as in B-Hive's models (section "What moves" of docs/attacks.md), those of
JetClass by their meaning. Names are unique over groups.
"""

from __future__ import annotations

_OFFLINE_JET = (
    "n_Cpfcand",
    "nCpfcan",
    "n_Npfcand",
    "nNpfcan",
    "nsv",
    "npv",
    "TagVarCSV_vertexCategory",
    "TagVarCSV_jetNSelectedTracks",
    "TagVarCSV_jetNTracksEtaRel",
)
_TRACK = (
    "VTX_ass",
    "puppiw",
    "chi2",
    "quality",
    "charge",
    "HadFrac",
    "CaloFrac",
    "pdgID",
    "lostInnerHits",
    "numberOfPixelHits",
    "numberOfStripHits",
)
_NEUTRAL = ("isGamma", "HadFrac", "puppiw")
_HLT_JET = ("jet_elf", "jet_muf", "jet_ncand", "jet_nbhad", "jet_nchad")
_HLT_CANDIDATE = (
    "calofraction",
    "hcalfraction",
    "frompv",
    "id",
    "charge",
    "track_qual",
    "track_chi2",
    "npixhits",
    "nstriphits",
    "nlostinnerhits",
)
_JETCLASS = ("charge", "isChargedHadron", "isNeutralHadron", "isPhoton", "isElectron", "isMuon")

INTEGER_FEATURES = frozenset(
    (
        *_OFFLINE_JET,
        *(f"Cpfcan_{name}" for name in _TRACK),
        *(f"LT_{name}" for name in _TRACK),
        *(f"Npfcan_{name}" for name in _NEUTRAL),
        "sv_ntracks",
        *_HLT_JET,
        *(f"jet_pfcand_{name}" for name in _HLT_CANDIDATE),
        "jet_sv_ntrack",
        "jet_nparticles",
        *(f"part_{name}" for name in _JETCLASS),
    )
)
"""Names of features that never change."""
