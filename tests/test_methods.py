"""What methods are made of: sums, products, phases, lessons from single states."""

import pytest
import tiny

from kd.errors import ConfigError
from kd.methods import Fixed, Labels, Method, Phase, Teachers, make, split_epochs, state_at
from kd.methods.kd import KD
from kd.methods.pwkd import PWKD
from kd.methods.rco import RCO
from kd.methods.srm import SRM
from kd.training import distill


def test_sums_and_names(data):
    both = KD(alpha=0.9) + Labels()
    assert both.label_weight == pytest.approx(0.1) and len(both.parts()) == 2
    assert (KD(alpha=0.9) + KD(alpha=0.5)).label_weight == (KD(alpha=0.5) + KD(alpha=0.9)).label_weight == pytest.approx(0.1)
    with pytest.raises(ConfigError, match=r"unknown method 'kdd' \(did you mean 'kd'\?\)"):
        make(["kdd"])
    with pytest.raises(ConfigError, match=r"kd: unknown parameter 'temprature' \(did you mean 'temperature'\?\)"):
        make(["kd"], parameters={"kd": {"temprature": 1}})
    for nobody in (None, Teachers()):
        with pytest.raises(ConfigError, match="KD needs a teacher"):
            distill(tiny.network(), KD(), nobody, data, tiny.RECIPE)
    with pytest.raises(ConfigError, match="needs a supernet"):
        distill(tiny.network(), Method(Fixed("supernet"), KD()), Teachers(route=[tiny.network()]), data, tiny.RECIPE)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: KD() + RCO(), r"KD\(\) \+ RCO.*: only knowledge adds"),
        (lambda: SRM() + RCO() * KD(), r"only knowledge adds; a curriculum multiplies it: RCO\(\) \* \(KD\(\) \+ SRM\(\)\)"),
        (lambda: RCO() + KD(), r"RCO\(\) \+ KD.*: a curriculum multiplies knowledge"),
        (lambda: KD() * RCO(), r"KD\(\) \* RCO.*: the curriculum comes first"),
        (lambda: RCO() * KD() + SRM(), "put brackets around the sum"),
        (lambda: PWKD() * RCO(), r"PWKD\(\) \* RCO.*: a curriculum multiplies knowledge"),
    ],
)
def test_what_neither_adds_nor_multiplies_says_what_would(mistake, words):
    with pytest.raises(ConfigError, match=words):
        mistake()


def test_learning_rate_segments_end_at_milestones():
    def ends(epochs, span=(0.0, 1.0), **recipe):
        phase = Phase("", [], tiny.RECIPE.replace(epochs=epochs, **recipe), span)
        return [epoch for epoch in range(1, epochs + 1) if phase.ends_segment(epoch)]

    assert ends(240, milestones=(0.625, 0.75, 0.875)) == [150, 180, 210, 240]
    assert ends(20, milestones=(0.625, 0.75, 0.875)) == [13, 15, 18, 20]  # 12.5 and 17.5 lie within an epoch
    assert ends(4, milestones=(0.625, 0.7)) == [3, 4] and ends(1, milestones=(0.5,)) == [1]
    assert ends(6, span=(0.5, 0.8), milestones=(0.4, 0.6, 0.8)) == [2, 6]  # 0.8 is the end of the phase
    assert ends(6, milestones=(0.5,), cycles=2) == [2, 3, 5, 6]  # 1.5 of 3 epochs, then the rate rises again
    assert all(ends(5, schedule=other) == [5] for other in ("cosine", "triangular", "constant"))


def test_single_states_of_the_route(data):
    route = tiny.Steps([tiny.network(seed=seed) for seed in range(6)], [1, 2, 3, 4, 5, 6])
    assert state_at(route, 0.5) == 2 and state_at(route, 1.0) == 5 and state_at(route, 0.01) == 0
    assert state_at(tiny.Steps([None] * 3, [1, 3, 10]), 0.2) == 0  # 2 lies between: the earlier
    early = tiny.lessons(Fixed(share=0.5), 5, route, data)[0]
    assert early.indices == (2,) and early.info == {"teacher_epoch": 3}
    assert tiny.lessons(Fixed(), 5, route, data)[0].indices == (-1,)
    tiny.run(Fixed(share=0.4) * KD(), route, tiny.RECIPE.replace(epochs=1))
    with pytest.raises(ConfigError, match=r"fixed\.share"):
        Fixed(share=1.5)


def test_epochs_are_split_evenly():
    assert split_epochs(20, [1] * 3, "x") == [7, 6, 7] and split_epochs(240, [1] * 24, "x") == [10] * 24
    for epochs in range(5, 60):
        parts = split_epochs(epochs, [1] * 5, "x")
        assert sum(parts) == epochs and max(parts) - min(parts) <= 1
    with pytest.raises(ConfigError, match="x: 2 epochs"):
        split_epochs(2, [1] * 3, "x")
