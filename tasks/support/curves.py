"""The module that job specs of earlier versions name, for `python -m bhive_mltf.law.plot_after_job`."""

import runpy

runpy.run_module("bhive_mltf.law.plot_after_job", run_name="__main__")
