"""What pyproject.toml cannot say: a wheel carries the files that the package reads, which here lie beside it."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

READ = ("tables", "profiles", "searches", "claims", "findings", "notebooks", "data.dvc")  # see kd/places.py


class BuildWithFiles(build_py):
    def run(self):
        super().run()
        if self.editable_mode:  # the package then lies in the repository and reads them there
            return
        target = Path(self.build_lib) / "kd" / "files"
        shutil.rmtree(target, ignore_errors=True)
        for name in READ:
            for path in [Path(name)] if Path(name).is_file() else sorted(Path(name).rglob("*.*")):
                if path.suffix in (".yaml", ".ipynb", ".dvc") and ".ipynb_checkpoints" not in path.parts:
                    (target / path.parent).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target / path)


setup(cmdclass={"build_py": BuildWithFiles})
