"""Upstream's module name for `bhive_mltf.law.tasks.input_plotter`."""

from bhive_mltf.law.tasks.input_plotter import HistogramPlotterTask, InputHistogrammerTask
