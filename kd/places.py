"""Where the package reads what is not Python, and where a study lies: in the repository, or installed elsewhere.

FILES holds tables/, profiles/, searches/, claims/, findings/, notebooks/ and data.dvc: the repository, else the copies that the
package brings (setup.py). ROOT holds params.yaml, data/, models/, runs/, reports/ and store/: the repository, else the
folder in which Python was started.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "files").is_dir()  # as a wheel has it
FILES = PACKAGE / "files" if INSTALLED else PACKAGE.parent
ROOT = Path.cwd() if INSTALLED else PACKAGE.parent
