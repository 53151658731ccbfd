"""What a run's teacher cost to train, in the measure of the students' training: multiply-adds for one training image of the student."""

from kd import checkpoints
from kd.data.stream import open_stream
from kd.models import Supernet, build, complexity
from kd.study.paths import images_path, teacher_path


def teacher_training(run, profile):
    """Multiply-adds of training the teacher of a run, once for all runs that share it, for one training image of the run's student.

    As kd.study.runs.training_multiply_adds counts: 3 forward passes' worth a training image and epoch, of every width of a supernet.
    A supernet's holds that of the teacher from which it grew. A teacher mostly sees more images than its student does, hence a number
    above what the epochs alone would give. 0 for a run without a teacher; None where its files are not here, or are others.
    """
    spent, data = 0.0, images_path(profile)
    for kind, md5 in run["teacher_md5"].items():
        mine = spent_on(profile, kind, run["teacher"], md5) if data.exists() else None
        if mine is None:
            return None
        spent += mine
    if not spent:
        return 0.0
    count = len(open_stream(data).labels["train"])
    chosen = run.get("images_per_class") or 0
    students = chosen * checkpoints.about(teacher_path(profile, kind, run["teacher"]))["classes"] if chosen else count
    return spent * count / students


def spent_on(profile, kind, network, md5):
    """Multiply-adds for one training image of the teacher's own, of the file with this md5; None where it is not here."""
    path = teacher_path(profile, kind, network)
    if not path.exists() or checkpoints.file_md5(path) != md5:
        return None
    about = checkpoints.about(path)
    module, image_shape = build(network, about["classes"], about["channels"]), open_stream(images_path(profile)).image_shape
    before, operations = 0.0, 0
    if kind == "route":
        operations = complexity(module, image_shape)[1]
    else:
        module = Supernet(module, about["widths"])
        for index in range(len(about["widths"])):
            module.select(index)
            operations += complexity(module, image_shape)[1]
        before = spent_on(profile, "route", network, about["start"]) if about.get("start") else 0.0
    return None if before is None else before + 3.0 * about["recipe"]["epochs"] * operations
