"""`bhive-mltf convert-checkpoint`: weights of B-Hive's own model classes as ours, or ours as theirs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

OURS, UPSTREAM = "bhive-mltf", "upstream"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a parser."""
    parser = commands.add_parser(
        "convert-checkpoint", help="rename the weights of a checkpoint of B-Hive's, or for B-Hive", description=__doc__
    )
    parser.add_argument("file", type=Path, help="model_N.pt or best_model.pt", metavar="FILE")
    parser.add_argument("--to", choices=(OURS, UPSTREAM), default=OURS, help=f"whose names (default: {OURS})")
    parser.add_argument("--model-name", default="", help="model that was trained (default: found by the names)")
    parser.add_argument(
        "--output", type=Path, help="file to write (default: beside FILE, *.bhive-mltf.pt or *.upstream.pt)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Convert, and say what was written.

    Raises
    ------
    CheckpointError
        The file cannot be read or the new one not written; the names are those already that are asked for.
    ModelError
        The weights are those of another model, or of one that is not converted.
    """
    from bhive_mltf.errors import CheckpointError
    from bhive_mltf.models import registry
    from bhive_mltf.models.upstream_weights import convert
    from bhive_mltf.training.checkpointing import checkpoint, start_from

    weights = start_from.read(options.file)
    if weights.is_upstreams == (options.to == UPSTREAM):
        raise CheckpointError(f"{options.file} has the names of {options.to} already: nothing to convert")
    target = options.output or options.file.with_suffix(f".{options.to}.pt")
    if target.exists():
        raise CheckpointError(f"{target} exists: remove it, or give another --output")
    model = options.model_name or str(weights.content.get("model_name", "")) or convert.model_of(weights.state)
    numbers = {name: value for name, value in weights.content.items() if isinstance(value, int | float)}
    content: dict[str, Any] = {name: float(v) if isinstance(v, float) else int(v) for name, v in numbers.items()}
    if options.to == UPSTREAM:
        state = convert.to_upstream(model, weights.state)
    else:
        state = convert.to_ours(model, weights.state)
        content |= {"model_name": model, "model_function": registry.entry(model).function}
    checkpoint.write_checkpoint(target, {**content, "model_state_dict": state})
    sys.stdout.write(f"{target}: {len(state)} weights of {model}, without the state of the optimizer\n")
    if options.to == OURS and convert.FAMILIES[model].has_padding_keys:
        sys.stdout.write(
            'in B-Hive padded candidates take part in this model: give --model-kwargs \'{"padding_keys": "upstream"}\' '
            "for the same predictions\n"
        )
