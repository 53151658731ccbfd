"""Loggers to take as they are or to copy: KD_LOGGER=examples.loggers:dvclive dvc repro rco

Nothing else needs these packages: `pip install` the one you use. Several runs advance side by side in one process, so
every run has a writer of its own, and none is "the current one".
"""

from kd.loggers import name_of_run, numbers

WRITERS = {}  # of this process, by the name of the run


def writer_of(run, make):
    """The writer of a run, made by make(name) when it is first asked for."""
    name = name_of_run(run)
    if name not in WRITERS:
        WRITERS[name] = make(name)
    return WRITERS[name]


def tensorboard(run, entry):
    """Below logs/NAME/: `tensorboard --logdir logs`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = writer_of(run, lambda name: SummaryWriter(f"logs/{name}"))
    for name, value in numbers(entry).items():
        writer.add_scalar(name, value, entry["step"])
    writer.flush()


def dvclive(run, entry):
    """Below dvclive/NAME/: for DVC's extension of VS Code, and `dvc plots show dvclive/NAME/plots/metrics/test.tsv`."""
    from dvclive import Live

    live = writer_of(run, lambda name: Live(f"dvclive/{name}", resume=True, save_dvc_exp=False, dvcyaml=None))
    live.step = entry["step"]
    for name, value in numbers(entry).items():
        live.log_metric(name, value)
    live.make_summary()


def wandb(run, entry):
    """A run of the project "kd"; with WANDB_MODE=offline below wandb/."""
    import wandb

    writer = writer_of(run, lambda name: wandb.init(project="kd", name=name, config=run, reinit="create_new"))
    writer.log(numbers(entry), step=entry["step"])


def mlflow(run, entry):
    """A run of the experiment "kd", where MLFLOW_TRACKING_URI says; without it below mlruns/ or in mlflow.db."""
    import mlflow

    def make(name):
        return client.create_run(mlflow.set_experiment("kd").experiment_id, run_name=name).info.run_id

    client = mlflow.MlflowClient()
    number = writer_of(run, make)
    for name, value in numbers(entry).items():
        client.log_metric(number, name, value, step=entry["step"])
