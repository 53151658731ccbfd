"""Knowledge distillation: five papers, one loop.

    import kd

    data = kd.load_data("digits")
    teacher = kd.build("cnn6x16", classes=10, channels=1)
    kd.train(teacher, data, kd.Recipe(epochs=20))
    student = kd.build("cnn3x4", classes=10, channels=1)
    kd.distill(student, kd.KD(temperature=4), teacher, data, kd.Recipe(epochs=20))
    print(kd.evaluate(student, data))

Names are looked up when they are first used, so that `import kd` loads torch and little more.
"""

from importlib import import_module

__version__ = "0.1.0"

WHERE = {
    "kd.data": ("Data", "load_data"),
    "kd.errors": ("ConfigError",),
    "kd.loggers": ("logged",),
    "kd.methods": ("Curriculum", "Fixed", "Knowledge", "Labels", "Lesson", "Method", "Phase", "Teachers", "make"),
    "kd.methods.attention": ("AT",),
    "kd.methods.dml": ("DML",),
    "kd.methods.factor": ("FT",),
    "kd.methods.hints": ("FitNet",),
    "kd.methods.iekd": ("IEDML", "IEKD"),
    "kd.methods.kd": ("KD",),
    "kd.methods.kr": ("KR",),
    "kd.methods.pwkd": ("PWKD",),
    "kd.methods.rco": ("RCO",),
    "kd.methods.srm": ("SRM",),
    "kd.models": ("Output", "Supernet", "Tapped", "build", "complexity", "evaluate", "feature_shapes"),
    "kd.models.saved": ("load", "save"),
    "kd.pipeline.source": ("show_source",),
    "kd.ranks": ("join_ranks",),
    "kd.recipe": ("Recipe",),
    "kd.report": ("figures", "schematics"),
    "kd.study.study": ("Study",),
    "kd.study.tables": ("load_table",),
    "kd.teachers": ("Route", "SubNetworks", "train_route", "train_supernet"),
    "kd.training": ("Checkpoint", "distill", "train"),
}
__all__ = sorted(name for names in WHERE.values() for name in names)
_MODULE_OF = {name: module for module, names in WHERE.items() for name in names}


def __getattr__(name):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kd' has no attribute {name!r}")
    module = _MODULE_OF[name]
    if module == "kd.report":  # its names are modules
        return import_module(f"{module}.{name}")
    return getattr(import_module(module), name)


def __dir__():
    return sorted(__all__)
