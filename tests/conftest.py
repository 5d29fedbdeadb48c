import gc

import pytest
from hypothesis import settings

from bhive_mltf import compat

# what upstream's environment lacks, how a test meets that, and why it is skipped then
LACKING = (
    (compat.major("uproot") < 5, "pip install 'uproot>=5.3'", "ROOT files take uproot 5"),
    (not compat.has_sqlalchemy(), "No module named 'sqlalchemy'", "mlflow-skinny has no database"),
    (not compat.has_logged_models(), "has no attribute 'search_logged_models'", "mlflow 2 keeps no models"),
)

# What takes longest comes first, so that no worker is left alone with it at the end.
LONGEST = (
    "law/test_chain", "law/test_bad_input", "files/test_lock_identity", "gateway/test_api", "data/test_faults_disk",
    "law/test_input_plotter", "tracking/test_auth", "data/test_construct", "tracking/test_journal", "models/test_syncs",
    "training/test_studies", "training/test_reproducibility", "data/test_root_reader", "data/test_faults_lz4",
    "data/test_pieces", "gateway/test_findings", "training/test_ranks", "data/test_root_dataset", "law/test_package",
)  # fmt: skip

# How long an example takes says more about the machine than about the code.
settings.register_profile("no deadline", settings.get_profile(settings.get_current_profile_name()), deadline=None)
settings.load_profile("no deadline")


# What libraries make as they are imported stays: to look at it again and again would be a tenth of the suite's time.
gc.set_threshold(200_000, 20, 20)


def pytest_collection_finish():
    gc.freeze()


def pytest_collection_modifyitems(items):
    """In the order of `LONGEST`, else as they were."""
    places = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get("/".join(item.path.with_suffix("").parts[-2:]), len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """In upstream's environment, tests that need a ROOT file or a database are skipped."""
    report = yield
    said = str(call.excinfo.value) if call.excinfo else ""
    for lacks, words, reason in LACKING:
        if lacks and words in said:
            report.outcome, report.longrepr = "skipped", (str(item.path), 0, reason)
    return report
