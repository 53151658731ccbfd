"""The program without its prose: the same text under every Python, blind to comments, not to code."""

import dataclasses
import textwrap

import pytest
import tiny

from kd import program
from kd.errors import ConfigError
from kd.pipeline.source import program_of_stage
from kd.study.paths import STAGES

SOURCE = '''
"""A module's docstring
over two lines."""
import os  # a comment


class A:
    """A class's."""

    x = "a # b"  # no comment inside the string
    """A string under an attribute."""

    def only_a_docstring(self):
        """Nothing else."""

    def f(self, n):
        # a comment of its own
        text = f"{n!r:>{3}} {'quoted'} {n:.2f}"
        return f"""{n}

  # not a comment: {text}
"""


def g(a,
      # between arguments
      b):
    \'\'\'Quoted otherwise.\'\'\'
    return """not a docstring"""
'''
# Recorded: every Python that runs these tests must make the same of it, whatever its own parser thinks of f-strings.
WITHOUT = '''import os
class A:
    x = "a # b"
    def only_a_docstring(self):
    def f(self, n):
        text = f"{n!r:>{3}} {'quoted'} {n:.2f}"
        return f"""{n}

  # not a comment: {text}
"""
def g(a,
      b):
    return """not a docstring"""
'''


def test_the_text_is_the_recorded_one():
    assert program.without_prose(SOURCE) == WITHOUT


@pytest.mark.parametrize("line, other, same", [
    ("x = 1  # one", "x = 1", True),
    ("x = 1", "\n\nx = 1\n\n", True),
    ("def f():\n    'doc'\n    return 1", "def f():\n    return 1", True),
    ("x = 1", "x = 2", False),
    ("x = '# one'", "x = '# two'", False),
    ("x = f'{y}'", 'x = f"{y}"', False),  # the source itself: nothing is made of it
    ("x = '''a\n\nb'''", "x = '''a\nb'''", False),
])  # fmt: skip
def test_prose_and_code_are_told_apart(line, other, same):
    assert (program.without_prose(line + "\n") == program.without_prose(other + "\n")) is same


def test_a_file_that_is_no_python_is_named(tmp_path):
    for text in ("def f(:", "x = '''", "x = (1,"):
        (tmp_path / "broken.py").write_text(text)
        program.program_of.cache_clear()
        with pytest.raises(ConfigError, match=r"broken.py is no Python"):
            program.program_of(tmp_path / "broken.py")


def test_imports_are_found_wherever_they_stand():
    source = textwrap.dedent('''
        import numpy
        from kd import checkpoints
        from kd.models import Output, build
        from kd.data import dataset
        def f():
            from kd.methods.rco import RCO
    ''')
    assert program.imports(source) == ["kd.checkpoints", "kd.models", "kd.data.dataset", "kd.methods.rco"]


def test_what_decides_no_result_is_no_part_of_the_training_program():
    modules = program.closure(["kd.study.runs", "kd.methods.srm"])
    assert {"kd.training", "kd.teachers", "kd.data.dataset", "kd.data.jpeg", "kd.data.stream", "kd.models.resnet", "kd.methods.base", "kd.methods.srm", "kd.recipe"} <= set(modules)
    for module in ("kd.data.fetch", "kd.data.folders", "kd.data.readers", "kd.study.executor", "kd.study.group", "kd.study.cluster", "kd.study.study", "kd.study.store", "kd.study.tables", "kd.errors", "kd.checkpoints", "kd.progress"):
        assert module not in modules
    assert not [module for module in modules if module.startswith(("kd.report", "kd.pipeline"))]


def test_what_readers_decide_is_in_the_md5_of_the_data_which_is_in_a_runs_key(tmp_path, monkeypatch):
    """Why the modules that read archives need be no part of the training program: other data from them make another run."""
    from kd.study import study
    from kd.study.runs import key_of
    from kd.study.tables import load_table

    data, keys, paths = tiny.data(), [], [tmp_path / "one.safetensors", tmp_path / "other.safetensors"]
    data.save(paths[0])
    data.images["train"][0, 0, 0, 0] += 1  # as a reader would that decodes otherwise
    dataclasses.replace(data).save(paths[1])
    for path in paths:
        monkeypatch.setattr(study, "images_path", lambda profile, path=path: path)
        table = load_table("kd_main")
        run, _ = study.Study("kd").run_of(table, next(row for row in table["rows"] if row["row"] == "student alone"), ("cnn3x8", "cnn3x4"), 0)
        keys.append((key_of(run), run["data_md5"]))
    assert keys[0][0] != keys[1][0] and keys[0][1] != keys[1][1]
    assert key_of(run | {"data_md5": keys[0][1]}) == keys[0][0]  # and nothing else differs


def test_a_page_depends_on_whatever_draws_in_it():
    for stage in ("teacher", *STAGES):
        text = program_of_stage(stage)
        assert "\n# kd.report.figures\n" in text and "\n# kd.report.schematics\n" in text and "\n# kd.study.study\n" in text, stage
    assert "\n# kd.methods.kr\n" in program_of_stage("kr") and "\n# kd.methods.kr\n" not in program_of_stage("teacher")
