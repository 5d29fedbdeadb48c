"""Greenhouse gases of a training from the energy of its GPUs, with every assumption written beside the number.

kg CO2e = energy of the GPUs x PUE x carbon intensity of the grid. The counters know the GPUs only: processors, memory
and network of the nodes are not in it, nor is the making of the hardware.

`BHIVE_MLTF_GRID` names the grid: a country of `GRIDS` or a number of g CO2e/kWh; `BHIVE_MLTF_PUE` the ratio of the
energy of the computing centre to that of its computers.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass

from bhive_mltf.errors import ParameterError

GRID_VARIABLE, PUE_VARIABLE = "BHIVE_MLTF_GRID", "BHIVE_MLTF_PUE"
SOURCE = "Our World in Data, life-cycle carbon intensity of electricity 2021, as in codecarbon's global_energy_mix.json"
GRIDS: Mapping[str, float] = {
    "AUT": 147.6,
    "BEL": 156.9,
    "BRA": 158.6,
    "CHN": 544.4,
    "CZE": 405.6,
    "DEU": 365.5,
    "DNK": 221.4,
    "ESP": 193.9,
    "EST": 481.2,
    "FIN": 145.5,
    "FRA": 67.4,
    "GBR": 268.3,
    "GRC": 353.3,
    "HRV": 211.0,
    "HUN": 233.0,
    "IND": 637.2,
    "USA": 379.3,
}
"""g CO2e per kWh by ISO 3166 alpha-3 code."""
WORLD = 475.0  # g CO2e per kWh
WORLD_SOURCE = "world average 2019, International Energy Agency"
DEFAULT_PUE = 1.0


@dataclass(frozen=True)
class Emissions:
    """What a training caused, and by which assumptions.

    energy : of the GPUs, in Wh. intensity : of the grid, in g CO2e/kWh. kilograms : CO2e.
    """

    energy: float
    pue: float
    intensity: float
    grid: str

    @property
    def kilograms(self) -> float:
        """Mass of CO2e in kg."""
        return self.energy / 1000 * self.pue * self.intensity / 1000

    def __str__(self) -> str:
        return (
            f"{self.kilograms:.3g} kg CO2e: {self.energy:,.1f} Wh of the GPUs x PUE {self.pue:g} x {self.intensity:g} "
            f"g/kWh ({self.grid}); processors, memory and hardware are not in it"
        )


def emissions(energy: float, environment: Mapping[str, str] = os.environ) -> Emissions:
    """What `energy` Wh of GPUs caused here.

    Raises
    ------
    ParameterError : a variable names no grid, or no PUE of at least 1.
    """
    given = environment.get(GRID_VARIABLE, "").strip()
    pue_text = environment.get(PUE_VARIABLE, "").strip()
    if not given:
        intensity, grid = WORLD, f"{WORLD_SOURCE}; {GRID_VARIABLE} names another grid"
    elif given.upper() in GRIDS:
        intensity, grid = GRIDS[given.upper()], f"{given.upper()}, {SOURCE}"
    else:
        intensity, grid = _number(given, 0.0), f"given by {GRID_VARIABLE}"
        if math.isnan(intensity):
            raise ParameterError(
                f"{GRID_VARIABLE} is {given!r}, which names no grid: give g CO2e/kWh, or one of {', '.join(GRIDS)}"
            )
    pue = _number(pue_text, 1.0) if pue_text else DEFAULT_PUE
    if math.isnan(pue):
        raise ParameterError(f"{PUE_VARIABLE} is {pue_text!r}: give a number of at least 1")
    return Emissions(energy, pue, intensity, grid)


def _number(text: str, least: float) -> float:
    """The number in a text, NaN where there is none or a smaller one."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) and value >= least else math.nan
