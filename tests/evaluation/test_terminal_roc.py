import numpy as np
import pytest
from rich.console import Console

from bhive_mltf.evaluation.terminal import terminal_roc
from bhive_mltf.models.classes import HLT, JETCLASS


@pytest.mark.parametrize("classes", [HLT, JETCLASS, {"uds": (), "b": ()}], ids=["HLT", "JetClass", "two"])
def test_w22_any_set_of_classes_can_be_drawn(fake, classes):
    predictions = fake(2000, len(classes))
    text = terminal_roc(predictions.logits, predictions.truth, classes, width=40, height=8).plain
    assert "AUC 0." in text
    assert sum(0x2801 <= ord(c) <= 0x28FF for c in text) > 10


def test_curves_fit_the_terminal(fake, six):
    predictions = fake(2000, 6)
    predictions.truth[:5] = -1
    text = terminal_roc(predictions.logits, predictions.truth, six, width=40, height=8)
    lines = text.plain.splitlines()
    assert max(map(len, lines)) <= 48
    assert "bvsl  AUC 0.9" in text.plain
    assert sum(0x2801 <= ord(c) <= 0x28FF for c in text.plain) > 40
    console = Console(width=80, record=True, file=None, quiet=True)
    console.print(text)


def test_nothing_to_draw_is_said(fake, six):
    predictions = fake(50, 6)
    text = terminal_roc(predictions.logits, np.zeros(50, int), six)
    assert text.plain.startswith("no ROC curve")
