"""Score the jets of ROOT files with a model that ExportTask wrote: numpy, uproot and onnxruntime are all it takes.

    python onnx_inference.py FOLDER jets.root [more.root ...] > scores.csv

FOLDER is the output of ExportTask; the package `onnx_scorer` in it does the work, and can be copied with the model.
"""

import csv
import sys
from pathlib import Path


def main() -> int:
    """One line per jet: file, entry, and the score of each class."""
    if len(sys.argv) < 3:
        sys.stderr.write(f"{__doc__}\n")
        return 2
    folder, *files = sys.argv[1:]
    sys.path.insert(0, str(Path(folder).resolve()))
    from onnx_scorer import Scorer

    scorer = Scorer(folder)
    table = csv.writer(sys.stdout)
    table.writerow(["file", "entry", *scorer.outputs])
    for file in files:
        for entry, scores in enumerate(scorer.score(file)):
            table.writerow([file, entry, *(f"{score:.6g}" for score in scores)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
