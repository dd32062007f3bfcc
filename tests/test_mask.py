import math
import re
import time

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import follows
from torch.utils._python_dispatch import TorchDispatchMode

from xlmprune.pruning import masks
from xlmprune.pruning.masks import (
    apply_masks,
    attainable,
    density,
    full_masks,
    keep_of_each,
    keep_top,
    pack_bits,
    parse_pattern,
    remaining,
    select,
    unpack_bits,
)

# Few distinct values, so that ties are the normal case.
few_values = st.lists(st.integers(-1, 3), min_size=1, max_size=40)


def whole(scores):
    return torch.ones_like(scores, dtype=torch.bool)


def by_sorting(scores, keep, within):
    """The rule, word for word: sort what remains downwards, equal scores by index, and take the first."""
    indices = [i for i in range(scores.numel()) if within.flatten()[i]]
    indices.sort(key=lambda i: (-float(scores.flatten()[i]), i))
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[indices[:keep]] = True
    return mask.view_as(scores)


@given(
    few_values,
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_pruning_is_exact_greedy_and_final(values, a, b, dtype):
    scores = torch.tensor(values, dtype=dtype)
    first = keep_top(scores, round(max(a, b) * len(values)), within=whole(scores))
    assert torch.equal(first, by_sorting(scores, round(max(a, b) * len(values)), whole(scores)))
    if first.any() and not first.all():
        assert scores[first].min() >= scores[~first].max()
    # Other scores a stage later: what is pruned stays pruned, however high it would score now.
    keep = round(min(a, b) * len(values))
    second = keep_top(scores.flip(0), keep, within=first)
    assert torch.equal(second, by_sorting(scores.flip(0), keep, first))
    assert second.sum() == keep
    assert not (second & ~first).any()


@given(
    st.integers(1, 6),
    st.integers(1, 8),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.data(),
)
def test_rows_keep_equally_many_or_one_more(rows, columns, a, b, dtype, data):
    """Row by row the rule of `by_sorting`; what the division leaves over goes to the rows whose next score is highest."""
    values = data.draw(
        st.lists(st.sampled_from([-math.inf, 0, 1, 2]), min_size=rows * columns, max_size=rows * columns)
    )
    scores = torch.tensor(values, dtype=torch.float64).to(dtype).view(rows, columns)
    within, turned = {"a": whole(scores)}, False
    for share in (max(a, b), min(a, b)):
        now = scores.flip(0) if turned else scores
        keep, turned = round(share * scores.numel()), True
        each, more = divmod(keep, rows)
        expected = torch.stack([by_sorting(*row) for row in zip(now, [each] * rows, within["a"])])
        left = within["a"] & ~expected
        following = [max((float(s) for s, free in zip(*row) if free), default=None) for row in zip(now, left)]
        order = sorted((-worth, row) for row, worth in enumerate(following) if worth is not None)
        for _, row in order[:more]:
            expected[row] |= by_sorting(now[row], 1, left[row])
        found = select({"a": now}, share, within, "row")
        assert torch.equal(found["a"], expected)
        assert found["a"].sum() == keep
        counts = found["a"].sum(dim=1)
        assert counts.max() - counts.min() <= 1
        within = found


def test_rows_are_ranked_on_a_gpu_as_on_a_cpu():
    """By sorting there, by partition here."""
    torch.manual_seed(0)
    scores = torch.randn(64, 128).mul(4).round()
    sorted_ = scores.sort(dim=1, descending=True).values
    for keep in (1, 5, 128):
        assert torch.equal(masks._nth_highest_of_rows(scores, keep), sorted_[:, keep - 1 : keep])


def test_a_row_that_has_too_few_left_is_an_error():
    scores = torch.zeros(2, 4)
    within = torch.tensor([[True] * 4, [True] + [False] * 3])
    with pytest.raises(ValueError, match="a: asked to keep 2 weights of every row, 1 remain"):
        select({"a": scores}, 0.5, {"a": within}, "row")


def test_ties_go_to_the_lower_index():
    scores = torch.tensor([[1.0, 2.0, 1.0], [1.0, 1.0, 2.0]])
    assert keep_top(scores, 4, whole(scores)).tolist() == [[True, True, True], [False, False, True]]


def test_pruned_entries_never_return_even_if_every_other_score_is_lower():
    scores = torch.tensor([9.0, -5.0, -torch.inf, -7.0])
    within = torch.tensor([False, True, True, True])
    assert keep_top(scores, 2, within).tolist() == [False, True, False, True]
    assert keep_top(scores, 3, within).tolist() == within.tolist()


@pytest.mark.parametrize(
    ("scope", "pattern"),
    [("layer", "unstructured"), ("global", "unstructured"), ("row", "unstructured"), ("layer", "2:4")],
)
def test_how_scores_lie_in_memory_does_not_matter(scope, pattern):
    scores = {"a": torch.tensor([[1, 2, 2, 0, 1, 1, 2, 0]] * 4).float()}
    turned = {"a": scores["a"].T.contiguous().T}
    assert not turned["a"].is_contiguous()
    expected = select(scores, 0.4, full_masks(scores), scope, pattern)
    assert torch.equal(select(turned, 0.4, full_masks(turned), scope, pattern)["a"], expected["a"])


def test_infinite_scores_are_ranked():
    scores = torch.tensor([torch.inf, 1.0, -torch.inf, torch.inf])
    assert keep_top(scores, 3, whole(scores)).tolist() == [True, True, False, True]


def test_asking_for_more_than_remains_is_an_error():
    scores = torch.ones(4)
    within = torch.tensor([True, False, True, False])
    with pytest.raises(ValueError, match="asked to keep 3 weights, 2 remain"):
        keep_top(scores, 3, within)


@pytest.mark.parametrize("scope", ["layer", "global", "row"])
def test_a_score_that_is_no_number_is_an_error_unless_pruned(scope):
    scores = {"a": torch.tensor([[torch.nan, 1.0, 2.0, 3.0]])}
    with pytest.raises(ValueError, match="not a number"):
        select(scores, 0.5, full_masks(scores), scope)
    within = {"a": torch.tensor([[False, True, True, True]])}
    assert select(scores, 0.5, within, scope)["a"].tolist() == [[False, False, True, True]]


def test_bfloat16_magnitudes_tie_by_the_thousand_and_counts_stay_exact():
    torch.manual_seed(0)
    scores = torch.randn(768, 768).bfloat16().abs()
    assert scores.unique().numel() < 3000
    for share in (0.9, 0.3138, 0.001):
        assert keep_top(scores, round(share * 589824), whole(scores)).sum() == round(share * 589824)


@given(few_values, few_values, st.floats(0, 1))
def test_global_selection_ranks_all_matrices_as_one(first, second, share):
    scores = {"a": torch.tensor([first]).float(), "b": torch.tensor([second]).float()}
    masks = select(scores, share, full_masks(scores), scope="global")
    joined = torch.cat([scores["a"][0], scores["b"][0]])
    expected = by_sorting(joined, round(share * len(joined)), whole(joined))
    assert torch.equal(torch.cat([masks["a"][0], masks["b"][0]]), expected)


def test_counts_come_from_the_original_sizes_and_do_not_drift():
    torch.manual_seed(0)
    scores = {"square": torch.randn(768, 768), "tall": torch.randn(3072, 768)}
    masks = full_masks(scores)
    for stage in (1, 2, 5, 11, 12):
        masks = select(scores, 0.9**stage, masks)
        if stage == 11:
            assert {name: int(mask.sum()) for name, mask in masks.items()} == {
                "square": 185_093,
                "tall": 740_372,
            }
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"square": 166_584, "tall": 666_335}


def test_kept_weights_of_xlmr_base_at_stage_eleven():
    counts = {589_824: 48, 2_359_296: 24}
    assert sum(round(size * 0.9**11) * number for size, number in counts.items()) == 26_653_392


def test_ranking_signed_weights_would_delete_the_largest_negative_ones():
    """Line 6 of the paper's Algorithm 1, as printed, keeps `w - w_s >= 0`. Our masks pass what that one fails."""

    def largest_pruned_is_below_smallest_kept(weight, mask):
        return weight[~mask].abs().max() <= weight[mask].abs().min()

    torch.manual_seed(0)
    weight = torch.randn(100, 100)
    literal = weight - weight.flatten().sort().values[1000] >= 0
    assert not largest_pruned_is_below_smallest_kept(weight, literal)
    assert largest_pruned_is_below_smallest_kept(weight, keep_top(weight.abs(), 9000, whole(weight)))


@given(st.lists(st.integers(0, 2), min_size=8, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_n_of_m_keeps_the_best_of_every_group(keep, values, alive):
    scores, within = torch.tensor([values]).float(), torch.tensor([alive])
    mask = keep_of_each(scores, keep, 4, within)
    for start in (0, 4):
        group = slice(start, start + 4)
        allowed = min(keep, int(within[0, group].sum()))
        assert torch.equal(mask[0, group], by_sorting(scores[0, group], allowed, within[0, group]))


@pytest.mark.parametrize(("pattern", "share"), [("2:4", 0.5), ("4:8", 0.5), ("1:4", 0.25), ("3:4", 0.75)])
def test_a_pattern_fixes_the_density_at_the_first_pruning_stage_and_keeps_it(pattern, share):
    torch.manual_seed(0)
    scores = {"a": torch.randn(6, 16), "b": torch.randn(4, 8)}
    dense = select(scores, 1.0, full_masks(scores), pattern=pattern)
    assert density(dense) == 1 == attainable(1.0, pattern)
    first = select(scores, 0.9, dense, pattern=pattern)
    assert density(first) == share == attainable(0.9, pattern)
    assert all(follows(mask, pattern) for mask in first.values())
    later = select(
        {name: torch.randn_like(score) for name, score in scores.items()}, 0.2, first, pattern=pattern
    )
    assert all(torch.equal(later[name], first[name]) for name in first)


def test_groups_lie_along_the_inputs_of_a_row():
    scores = {
        "a": torch.tensor(
            [[4.0, 3.0, 2.0, 1.0, 1.0, 2.0, 3.0, 4.0], [1.0, 9.0, 9.0, 1.0, 0.0, 0.0, 0.0, 0.0]]
        )
    }
    mask = select(scores, 0.5, full_masks(scores), pattern="2:4")["a"]
    assert mask.int().tolist() == [[1, 1, 0, 0, 0, 0, 1, 1], [0, 1, 1, 0, 1, 1, 0, 0]]
    assert not follows(mask.T.contiguous().view(2, 8), "2:4")


@pytest.mark.parametrize("pattern", ["4:2", "0:4", "2/4", "two", "2:4:8", "4:4"])
def test_an_unknown_pattern_is_refused(pattern):
    with pytest.raises(ValueError, match="N:M"):
        parse_pattern(pattern)


def test_rows_that_do_not_divide_are_refused_by_name():
    scores = {"encoder.key": torch.zeros(2, 6)}
    with pytest.raises(
        ValueError, match=re.escape("encoder.key: rows of 6 inputs do not divide into groups of 4")
    ):
        select(scores, 0.5, full_masks(scores), pattern="2:4")


def test_faulty_requests_are_refused():
    scores = {"a": torch.zeros(2, 4)}
    with pytest.raises(ValueError, match="outside"):
        select(scores, 1.5, full_masks(scores))
    with pytest.raises(ValueError, match="scope"):
        select(scores, 0.5, full_masks(scores), scope="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="different weights"):
        select(scores, 0.5, {})


def test_pruned_weights_become_positive_zero_and_the_rest_is_untouched():
    weights = {"a": torch.tensor([[-1.0, 2.0], [3.0, -4.0]], requires_grad=True)}
    apply_masks(weights, {"a": torch.tensor([[False, True], [False, True]])})
    assert weights["a"].tolist() == [[0.0, 2.0], [0.0, -4.0]]
    assert torch.signbit(weights["a"]).int().tolist() == [[0, 0], [0, 1]]


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_bits_pack_and_unpack(bits):
    mask = torch.tensor(bits)
    packed = pack_bits(mask)
    assert packed.dtype == torch.uint8
    assert len(packed) == -(-len(bits) // 8)
    assert torch.equal(unpack_bits(packed, [len(bits)]), mask)
    assert [int(packed[i // 8]) >> (i % 8) & 1 for i in range(len(bits))] == [int(bit) for bit in bits]


def test_packed_bits_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match="3 bytes cannot hold"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), (4, 4))


def test_density_counts():
    masks = {"a": torch.tensor([True, False]), "b": torch.tensor([True, True])}
    assert density(masks) == 0.75
    assert remaining(masks.values()) == (3, 4)


@given(
    st.lists(
        st.sampled_from([-math.inf, -2.5, -0.0, 0.0, 1e-42, 1e-30, 1.0, 1.0 + 2**-23, 3e38, math.inf]),
        min_size=1,
    ),
    st.data(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_counting_finds_the_threshold_that_partitioning_finds(values, data, dtype):
    """What a GPU does and what a CPU does are the same, ties, infinities and subnormal numbers included."""
    scores = [part.to(dtype) for part in torch.tensor(values, dtype=torch.float64).tensor_split(3)]
    within = [
        torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))), dtype=torch.bool)
        for s in scores
    ]
    left = sum(int(mask.sum()) for mask in within)
    assume(left)
    keep = data.draw(st.integers(1, left))
    assert masks._by_counting(scores, keep, within) == masks._by_partition(scores, keep, within)


def test_a_gpu_needs_memory_for_one_matrix_when_all_are_ranked_together(monkeypatch):
    """A sort of all scores makes int64 indices of them, 2.4 GB for XLM-R large, beside the sorted copy."""
    monkeypatch.setattr(masks, "_by_partition", masks._by_counting)
    scores = {str(i): torch.randn(64, 128) for i in range(50)}
    within = full_masks(scores)
    with Largest() as largest:
        chosen = select(scores, 0.3, within, "global")
    assert density(chosen) == pytest.approx(0.3, abs=1e-5)
    assert largest.bytes <= 8 * 64 * 128


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation makes."""

    bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.numel() * tensor.element_size())
        return made


# The figures in `select` come from all twelve layers. Here one of them, with a bulk of tied zeros, which is where naive
# selection grows slow: numpy's introselect takes 5 s for 85 M floats when half of them are equal and lie at its front.
@pytest.mark.parametrize("scope", ["layer", "global", "row"])
def test_selection_is_quick_at_full_size(scope):
    generator = torch.Generator().manual_seed(0)
    shapes = [(768, 768)] * 4 + [(3072, 768), (768, 3072)]
    scores = {
        str(i): torch.rand(shape, generator=generator).sub_(0.5).relu_() for i, shape in enumerate(shapes)
    }
    started = time.perf_counter()
    masks = select(scores, 0.3138, full_masks(scores), scope)
    assert time.perf_counter() - started < 10  # 0.1 s on an idle machine
    assert abs(density(masks) - 0.3138) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("scope", "pattern"),
    [("layer", "unstructured"), ("global", "unstructured"), ("row", "unstructured"), ("layer", "2:4")],
)
def test_a_gpu_chooses_the_same_weights(dtype, scope, pattern):
    torch.manual_seed(0)
    scores = {name: torch.randn(64, 128).mul(4).round().to(dtype) for name in "ab"}
    within = {name: torch.rand(64, 128) < 0.8 for name in "ab"}
    expected = select(scores, 0.4, within, scope, pattern)
    on_gpu = [{name: tensor.cuda() for name, tensor in tensors.items()} for tensors in (scores, within)]
    found = select(on_gpu[0], 0.4, on_gpu[1], scope, pattern)
    assert all(torch.equal(found[name].cpu(), mask) for name, mask in expected.items())
