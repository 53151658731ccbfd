"""Where everything lies: one place for every folder of a study."""

import os

from kd.places import FILES, ROOT

# the stages that run tables, in the order in which the methods are taught; each has a notebook and a folder of tables/
STAGES = {
    "kd": "Knowledge distillation",
    "kr": "KR: knowledge representing",
    "srm": "SRM: sparse representation matching",
    "rco": "RCO: route constrained optimization",
    "iekd": "IE-KD: inheritance and exploration",
    "pwkd": "PWKD: partial to whole",
    "combined": "All methods, and all together",
}


def images_path(profile):
    """Where stage data leaves a profile's images, as tensors."""
    return ROOT / "data" / profile / "images.safetensors"


def teacher_path(profile, kind, network):
    """Where a teacher lies; kind: "route" or "supernet"."""
    return ROOT / "models" / profile / f"{kind}s" / f"{network}.safetensors"


def runs_path(profile, stage):
    """Where the pipeline's stage leaves its records and weights."""
    return ROOT / "runs" / profile / stage


def metrics_path(profile, stage):
    """Where the pipeline leaves a stage's metrics, which are committed."""
    return reports_path(profile) / "metrics" / f"{stage}.json"


def curves_path(profile, stage):
    """Where the pipeline leaves a stage's curves."""
    return ROOT / "runs" / profile / "curves" / f"{stage}.csv"


def executed_path(profile, name):
    """Where the pipeline leaves the executed notebook called `name`, "01_kd" or "00_teacher-resnet20"."""
    return ROOT / "runs" / profile / "notebooks" / f"{name}.ipynb"


def reports_path(profile):
    """Where the reports of a profile lie, which are committed."""
    return ROOT / "reports" / profile


def notebook_path(stage):
    """The notebook of a stage, as it is written: notebooks/04_rco.ipynb for "rco"."""
    return next((FILES / "notebooks").glob(f"[0-9][0-9]*_{stage}.ipynb"))


def appendix_paths(stage):
    """The notebooks that a stage executes behind its own: notebooks/03a_srm_readings.ipynb for "srm"."""
    return sorted((FILES / "notebooks").glob(f"[0-9][0-9][a-z]_{stage}_*.ipynb"))


def scratch_unless_pipeline(path):
    """`path` for the pipeline (`python -m kd stage` sets KD_PIPELINE), its like below scratch/ for a notebook opened by hand.

    So nobody who plays with a notebook can change what the pipeline has made.
    """
    return path if os.environ.get("KD_PIPELINE") else ROOT / "scratch" / path.relative_to(ROOT)
