from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xlmprune.pruning.schedules import Continuous, Cubic, Explicit, Geometric, Linear


def test_geometric_gives_the_papers_densities():
    densities = Geometric(0.1, 12).per_stage()
    expected = [
        0.9000,
        0.8100,
        0.7290,
        0.6561,
        0.5905,
        0.5314,
        0.4783,
        0.4305,
        0.3874,
        0.3487,
        0.3138,
        0.2824,
    ]
    assert [round(density, 4) for density in densities] == expected
    assert Geometric().per_stage()[-1] == 0.9**11


def test_linear_by_hand():
    assert Linear(stages=3, final_density=0.25).per_stage() == (0.75, 0.5, 0.25)


def test_cubic_by_hand():
    # 0.2 + 0.8 * (1 - j / 4) ** 3
    assert Cubic(stages=4, final_density=0.2).per_stage() == pytest.approx([0.5375, 0.3, 0.2125, 0.2])


def test_cubic_prunes_early():
    removed = [1 - density for density in Cubic().per_stage()[:3]]
    assert [round(share, 2) for share in removed] == [0.17, 0.31, 0.42]


@pytest.mark.parametrize("schedule", [Geometric, Linear, Cubic])
def test_warm_up_stays_dense_and_cool_down_stays_at_the_end(schedule):
    inner = schedule(stages=4).per_stage()
    assert schedule(stages=9, warm_up=2, cool_down=3).per_stage() == (1.0, 1.0, *inner, *[inner[-1]] * 3)


@given(
    st.sampled_from([Linear, Cubic]),
    st.integers(1, 30),
    st.integers(0, 5),
    st.integers(0, 5),
    st.floats(0.01, 1),
)
def test_densities_fall_from_one_to_the_final_one_exactly(schedule, pruning, warm_up, cool_down, final):
    stages = pruning + warm_up + cool_down
    densities = schedule(stages=stages, final_density=final, warm_up=warm_up, cool_down=cool_down).per_stage()
    assert len(densities) == stages
    assert densities[-1] == final
    assert all(1 >= a >= b >= final for a, b in pairwise(densities))


@pytest.mark.parametrize("schedule", [Geometric, Linear, Cubic])
@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": -1},
        {"stages": 0, "warm_up": 1},
        {"stagse": 3},
        {"stages": 3, "warm_up": 2, "cool_down": 1},
        {"warm_up": -1},
    ],
)
def test_faulty_parameters_are_refused(schedule, wrong):
    with pytest.raises(ValidationError, match=r"stage|stagse|warm_up"):
        schedule(**wrong)


def test_continuous_by_hand():
    """Ten updates: dense for two, then every second one until the seventh, where the masks are final."""
    schedule = Continuous(final_density=0.2, every=2, warm_up=0.2, cool_down=0.3)
    assert schedule.per_stage() == (0.2,)
    assert schedule.end(10) == 7
    assert [update for update in range(11) if schedule.is_due(update, 10, 3)] == [2, 4, 6, 7]
    falling = [1.0] * 3 + [0.2 + 0.8 * (1 - x / 5) ** 3 for x in range(1, 5)] + [0.2] * 4
    assert [schedule.density(update, 10) for update in range(11)] == pytest.approx(falling)
    assert [schedule.last_due(update, 10, 3) for update in range(11)] == [0, 0, 2, 2, 4, 4, 6, 7, 7, 7, 7]


def test_continuous_in_epochs_with_a_jump_is_oberts_schedule():
    """Kurtic et al. 2022: 30 epochs, sparsity 0.7 at epoch 2, every 4 epochs, 0.9 from epoch 26."""
    schedule = Continuous(
        final_density=0.1, first_density=0.3, every=4, unit="epochs", warm_up=2 / 30, cool_down=4 / 30
    )
    assert [update for update in range(301) if schedule.is_due(update, 300, 10)] == [
        20,
        60,
        100,
        140,
        180,
        220,
        260,
    ]
    assert [schedule.density(update, 300) for update in (19, 20, 140, 260, 300)] == pytest.approx(
        [1.0, 0.3, 0.1 + 0.2 / 8, 0.1, 0.1]
    )


@pytest.mark.parametrize("warm_up", [0, 0.06])
def test_a_jump_without_warm_up_comes_before_the_first_update(warm_up):
    """Five updates, of which six in a hundred are none; the jump came after `every` updates, below `first_density`."""
    schedule = Continuous(final_density=0.3, first_density=0.5, warm_up=warm_up, cool_down=0.4, every=2)
    assert [update for update in range(6) if schedule.is_due(update, 5, 10)] == [0, 2, 3]
    assert [schedule.density(schedule.last_due(update, 5, 10), 5) for update in range(6)] == pytest.approx(
        [0.5, 0.5, 0.3 + 0.2 / 27, 0.3, 0.3, 0.3]
    )
    smooth = Continuous(final_density=0.3, warm_up=warm_up, cool_down=0.4, every=2)
    assert not smooth.is_due(0, 5, 10), "nothing to prune yet"


@given(
    st.integers(1, 300),
    st.integers(1, 20),
    st.floats(0, 0.5),
    st.floats(0, 0.45),
    st.floats(0.05, 1),
)
def test_continuous_falls_and_ends_exactly(total, every, warm_up, cool_down, final):
    schedule = Continuous(final_density=final, every=every, warm_up=warm_up, cool_down=cool_down)
    due = [update for update in range(1, total + 1) if schedule.is_due(update, total, 7)]
    densities = [schedule.density(update, total) for update in due]
    assert densities[-1] == final
    assert all(a >= b for a, b in pairwise([1.0, *densities]))


@pytest.mark.parametrize(
    "wrong", [{"warm_up": 0.6, "cool_down": 0.4}, {"first_density": 0.1, "final_density": 0.2}, {"every": 0}]
)
def test_a_continuous_schedule_that_cannot_be(wrong):
    with pytest.raises(ValidationError):
        Continuous(**wrong)


@pytest.mark.parametrize("schedule", [Geometric, Linear, Cubic])
def test_no_stages_are_the_dense_run_alone(schedule):
    assert schedule(stages=0).per_stage() == ()


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan"), "much"])
def test_a_step_must_remove_something_and_not_all(fraction):
    with pytest.raises(ValidationError):
        Geometric(step_fraction=fraction)


def test_explicit_densities_are_those_of_the_recipe():
    assert Explicit(densities=[0.31, 0.1, 0.1, 0.05]).per_stage() == (0.31, 0.1, 0.1, 0.05)
    assert Explicit(densities=[]).per_stage() == ()


@pytest.mark.parametrize("densities", [[0.1, 0.31], [0.0], [1.1], [float("nan")], "much", None])
def test_explicit_densities_that_cannot_be(densities):
    with pytest.raises(ValidationError):
        Explicit(densities=densities)
