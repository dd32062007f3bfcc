from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from xlmprune.pruning.schedules import Cubic, Geometric, Linear


def test_geometric_gives_the_papers_densities():
    densities = Geometric(0.1, 12).densities()
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
    assert Geometric().densities()[-1] == 0.9**11


def test_linear_by_hand():
    assert Linear(stages=3, final_density=0.25).densities() == (0.75, 0.5, 0.25)


def test_cubic_by_hand():
    # 0.2 + 0.8 * (1 - j / 4) ** 3
    assert Cubic(stages=4, final_density=0.2).densities() == pytest.approx([0.5375, 0.3, 0.2125, 0.2])


def test_cubic_prunes_early():
    removed = [1 - density for density in Cubic().densities()[:3]]
    assert [round(share, 2) for share in removed] == [0.17, 0.31, 0.42]


@pytest.mark.parametrize("schedule", [Geometric, Linear, Cubic])
def test_warm_up_stays_dense_and_cool_down_stays_at_the_end(schedule):
    inner = schedule(stages=4).densities()
    assert schedule(stages=9, warm_up=2, cool_down=3).densities() == (1.0, 1.0, *inner, *[inner[-1]] * 3)


@given(
    st.sampled_from([Linear, Cubic]),
    st.integers(1, 30),
    st.integers(0, 5),
    st.integers(0, 5),
    st.floats(0.01, 1),
)
def test_densities_fall_from_one_to_the_final_one_exactly(schedule, pruning, warm_up, cool_down, final):
    stages = pruning + warm_up + cool_down
    densities = schedule(stages=stages, final_density=final, warm_up=warm_up, cool_down=cool_down).densities()
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


@pytest.mark.parametrize("schedule", [Geometric, Linear, Cubic])
def test_no_stages_are_the_dense_run_alone(schedule):
    assert schedule(stages=0).densities() == ()


@pytest.mark.parametrize("fraction", [0.0, 1.0, float("nan"), "much"])
def test_a_step_must_remove_something_and_not_all(fraction):
    with pytest.raises(ValidationError):
        Geometric(step_fraction=fraction)
