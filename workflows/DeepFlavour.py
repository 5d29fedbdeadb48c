"""Upstream's module name for `bhive_mltf.law.tasks.wrappers`."""

from bhive_mltf.law.tasks.wrappers import DeepJetRun, DeepJetRunHLT, DeepJetRunHLTPhase2, ParticleNetRunHLT
