"""Small training sets for tests: configs, ROOT files with known jets, construction in one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from bhive_mltf import config as configs
from bhive_mltf.data.build.construct import construct
from bhive_mltf.data.build.stage import stage_many
from bhive_mltf.data.dataset import open_dataset
from bhive_mltf.data.ntuples.jobs import ReadOptions, StageJob, staged_name
from bhive_mltf.testing.root_files import Jets, write_tree

SMALL = {
    "treename": "deepntuplizer/tree",
    "dataset": "ArrowDataset",
    "bins_pt": [10, 30, 60, 120, 2001],
    "bins_eta": [-2.5, -1.0, 1.0, 2.51],
    "processes": ["TT", "QCD"],
    "reference_flavour": "isB",
    "truths": ["isB", "isC", "isUD"],
    "global_features": ["jet_pt", "jet_eta", "npv"],
    "n_cpf_candidates": 5,
    "cpf_candidates": ["Cpfcan_pt", "Cpfcan_BtagPf_trackSip2dSig"],
    "cpf_custom_features": [{"Cpfcan_logrel": "log(Cpfcan_pt / jet_pt)"}],
    "n_vtx_candidates": 2,
    "vtx_features": ["sv_mass"],
}


def small_config(folder: Path, **changes):
    """The small config with changes; None removes a key."""
    values = {key: value for key, value in {**SMALL, **changes}.items() if value is not None}
    path = Path(folder) / "small.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return configs.load(str(path))


def hand_made(n_jets: int = 6, **changes) -> Jets:
    """Jets with plain numbers: jet i has i % 4 tracks and i % 3 vertices, and is b, c or light in turn."""
    i = np.arange(n_jets)
    tracks, vertices = i % 4, i % 3
    n_tracks, n_vertices = int(tracks.sum()), int(vertices.sum())
    scalars = {
        "jet_pt": (20 + i).astype(np.float32),
        "jet_eta": (0.1 * (i % 20) - 1).astype(np.float32),
        "npv": i.astype(np.float32),
        "isB": (i % 3 == 0).astype(np.int32),
        "isC": (i % 3 == 1).astype(np.int32),
        "isUD": (i % 3 == 2).astype(np.int32),
    }
    lists = {
        "n_Cpfcand": (
            tracks,
            {
                "Cpfcan_pt": (1 + np.arange(n_tracks)).astype(np.float32),
                "Cpfcan_BtagPf_trackSip2dSig": (-1 - np.arange(n_tracks)).astype(np.float32),
            },
        ),
        "n_sv": (vertices, {"sv_mass": (0.5 + np.arange(n_vertices)).astype(np.float32)}),
    }
    return Jets({**scalars, **changes}, lists)


def write_hand_made(path: Path, n_jets: int = 6, **changes) -> str:
    """A ROOT file of hand-made jets."""
    return str(write_tree(path, SMALL["treename"], hand_made(n_jets, **changes)))


def build(config, paths, directory, *, chunk_size=1000, seed=1, per_job=1, **options):
    """Stage and construct; the open dataset."""
    directory = Path(directory)
    groups = [tuple(paths[i : i + per_job]) for i in range(0, len(paths), per_job)]
    skip = options.pop("skip_bad_files", False)
    weighting = options.pop("weighting", "reference")
    is_test_set = options.pop("is_test_set", False)
    jobs = [
        StageJob(config, group, directory.parent / f"{directory.name}_staged" / staged_name(config, group, seed), seed)
        for group in groups
    ]
    jobs = [
        StageJob(job.config, job.paths, job.target, job.seed, skip_bad_files=skip, options=ReadOptions(**options))
        for job in jobs
    ]
    stage_many(jobs)
    construct(
        config,
        [job.target for job in jobs],
        directory,
        chunk_size=chunk_size,
        seed=seed,
        filelist=paths,
        code_version="0",
        weighting=weighting,
        is_test_set=is_test_set,
    )
    return open_dataset(directory, config)


def same(a, b) -> bool:
    """Two blocks hold the same jets, bit for bit."""
    pairs = [(a.truth, b.truth), (a.process, b.process), (a.weight, b.weight), (a.kinematics, b.kinematics)]
    pairs += [(a.features[name], b.features[name]) for name in a.features]
    pairs += [(a.counts[name], b.counts[name]) for name in a.counts]
    return a.features.keys() == b.features.keys() and all(np.array_equal(x, y) for x, y in pairs)
