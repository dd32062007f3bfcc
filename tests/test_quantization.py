import collections
import json

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper
from tiny import tiny_masks, tiny_model, tiny_special

from xlmprune.core.errors import BundleError
from xlmprune.data.encoding import Encoded, join_encoded
from xlmprune.evaluation.scores import collect
from xlmprune.export import choosing, packing, quantization
from xlmprune.export.calibration import calibrate, product_error, smooth
from xlmprune.export.choosing import Candidate, Questions, candidates_for, choose
from xlmprune.export.graph import export_onnx
from xlmprune.export.runtime import forward_of, open_session


def session_of(proto, **entries):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    for name, value in entries.items():
        setattr(options, name, value)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def feed(rows=6, length=12, seed=0):
    random = np.random.default_rng(seed)
    ids = random.integers(4, 200, (rows, length))
    for row in range(rows):
        ids[row, length - row % length :] = 1
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}


def logits(proto, inputs=None):
    return session_of(proto).run(None, inputs or feed())[0]


def error(found, exact):
    return float(np.sqrt(((found - exact) ** 2).mean() / ((exact - exact.mean(0)) ** 2).mean()))


def arrays(proto):
    return {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}


@pytest.fixture(scope="module")
def fp32():
    model = tiny_model(hidden=64)
    tiny_masks(model)
    return export_onnx(model)


@pytest.fixture(scope="module")
def with_outliers(fp32):
    """The same model, two channels of whose feed-forward inputs are forty times larger: a LayerNorm's gain does it."""
    proto = onnx.ModelProto()
    proto.CopyFrom(fp32)
    for layer in (0, 1):
        node = next(
            n
            for n in proto.graph.node
            if n.op_type == "MatMul" and f"layer.{layer}.intermediate.dense" in n.input[1]
        )
        norm = next(n for n in proto.graph.node if n.output[0] == node.input[0])
        gain = np.ones(64, dtype=np.float32)
        gain[[3, 40]] = 40
        norm.input[1] = f"gain.{layer}"
        proto.graph.initializer.append(numpy_helper.from_array(gain, norm.input[1]))
    return proto


# --- matrices and tables ---------------------------------------------------------------------------------------------


numbers = st.sampled_from([0.0, 0.0, 0.5, 1.0, -1.0, 3.0, -3.0, 100.0]) | st.floats(-5, 5, width=32)


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=numbers),
    st.booleans(),
)
def test_a_matrix_keeps_its_zeros_and_its_sums_fit_any_processor(weight, per_channel):
    integers, scale = quantization.quantize_matrix(weight, per_channel)
    assert integers.dtype == np.int8
    assert scale.dtype == np.float32
    assert scale.shape == ((weight.shape[1],) if per_channel else ())
    assert not integers[weight == 0].any()
    assert np.abs(integers * scale - weight).max() <= np.max(scale) * 0.501
    paired = np.vstack([integers, np.zeros((len(integers) % 2, weight.shape[1]), np.int8)]).astype(int)
    for sign in (1, -1):
        sums = np.maximum(sign * paired, 0).reshape(-1, 2, weight.shape[1]).sum(1)
        assert sums.max(initial=0) <= 128
        assert 255 * sums.max(initial=0) <= 32767


def test_a_lone_weight_uses_the_whole_range():
    weight = np.zeros((4, 2), np.float32)
    weight[1, 0], weight[2, 1] = 2.5, -7
    integers, scale = quantization.quantize_matrix(weight)
    assert integers[1, 0] == 127
    assert integers[2, 1] == -127
    assert scale == pytest.approx([2.5 / 127, 7 / 127])


def test_integer_products_are_exact_on_this_processor():
    """The largest activations meet the largest neighbours; where sums of pairs overflow, this fails on AVX2."""
    integers, _ = quantization.quantize_matrix(np.ones((64, 32), np.float32))
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [None, 64])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [numpy_helper.from_array(integers, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    for rows in (1, 3, 64):
        x = np.full((rows, 64), 255, np.uint8)
        assert np.array_equal(session_of(proto).run(None, {"x": x})[0], x.astype(int) @ integers.astype(int))


@settings(deadline=None)
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=numbers))
def test_a_row_is_off_by_half_a_step_at_most(table):
    integers, scale = quantization.quantize_rows(table)
    assert (np.abs(integers * scale - table) <= 0.501 * scale).all()
    assert not integers[table == 0].any()


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.sampled_from([32, 64, 96])), elements=numbers))
def test_four_bits_are_off_by_about_half_a_step(table):
    packed, scale = quantization.quantize_blocks(table)
    values = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32) - 8
    blocks = values.reshape(len(table), -1, 32) * scale.astype(np.float32)
    # fp16 scales have steps of 6e-8 at least.
    # At the far end from -8 there is only +7, so a value there may be a whole step off.
    assert (
        np.abs(blocks - table.reshape(blocks.shape)) <= 1.02 * np.abs(scale.astype(np.float32)) + 5e-7
    ).all()
    assert not blocks[table.reshape(blocks.shape) == 0].any()


def test_four_bit_tables_that_were_four_bits_come_back_as_they_were():
    random = np.random.default_rng(0)
    scale = random.random((20, 2, 1)).astype(np.float16)
    values = random.integers(-8, 8, (20, 2, 32))
    values[:, :, 5] = -8
    table = (values * scale.astype(np.float32)).reshape(20, 64)
    packed, found = quantization.quantize_blocks(table)
    assert np.array_equal(found, scale)
    back = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32).reshape(20, 2, 32) - 8
    assert np.array_equal(back, values)


# --- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embeddings", ["int8", "int4", "fp32"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_the_form_is_standard_and_near(fp32, embeddings, per_channel):
    form = quantization.quantize(fp32, per_channel, embeddings)
    onnx.checker.check_model(form, full_check=True)
    assert {entry.domain for entry in form.opset_import} == {""}
    assert error(logits(form), logits(fp32)) < (0.5 if embeddings == "int4" else 0.2)
    assert form.ByteSize() < fp32.ByteSize() * 0.6
    assert [entry.name for entry in form.graph.output] == ["logits"]


def test_all_encoder_matrices_and_the_large_tables_are_integers_and_the_head_is_not(fp32):
    found = arrays(quantization.quantize(fp32))
    large = {name for name, array in found.items() if array.dtype == np.float32 and array.ndim == 2}
    assert {name for name in large if array_is_weight(found[name])} == {"classifier.dense.weight"}
    assert sum(name.endswith(".weight.T/int8") for name in found) == 12
    assert found["roberta.embeddings.word_embeddings.weight/int8"].dtype == np.int8


def array_is_weight(array):
    return array.shape[0] > 3 and array.shape[1] > 3


def test_the_runtime_fuses_it_and_leaves_no_product_in_floats(fp32, tmp_path):
    form = quantization.quantize(fp32)
    session_of(form, optimized_model_filepath=str(tmp_path / "optimized.onnx"))
    found = collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] == 12
    assert found["MatMulInteger"] == 0


def test_query_key_and_value_share_what_is_made_from_their_input(fp32):
    calibration = calibrate(fp32, [feed()])
    for smoothing in (None, calibration.smoothing):
        form = quantization.quantize(fp32, smoothing=smoothing)
        kinds = collections.Counter(node.op_type for node in form.graph.node)
        assert kinds["DynamicQuantizeLinear"] == 8
        assert kinds["MatMulInteger"] == 12


def test_what_was_pruned_is_zero_and_packs(fp32):
    form = quantization.quantize(fp32)
    weights = arrays(fp32)
    for name, integers in arrays(form).items():
        if name.endswith(".weight.T/int8"):
            assert not integers[weights[name.removesuffix("/int8")] == 0].any()
    packed = packing.pack(form, smallest=2000)
    assert len(packing.packed_names(packed)) == 12
    assert np.array_equal(logits(packed), logits(form))


def test_what_is_to_stay_stays(fp32):
    table, matrix = "roberta.embeddings.word_embeddings.weight", quantization.matrices_of(fp32)[4][0]
    form = quantization.quantize(fp32, keep_fp32=[table, matrix])
    found = arrays(form)
    assert np.array_equal(found[table], arrays(fp32)[table])
    assert np.array_equal(found[matrix], arrays(fp32)[matrix])
    assert f"{matrix}/int8" not in found
    facts = json.loads(next(entry.value for entry in form.metadata_props if entry.key == "quantization"))
    assert facts == {"per_channel": True, "embeddings": "int8", "smoothed": 0, "fp32": [table, matrix]}


def test_the_argument_is_left_as_it_was(fp32):
    before = fp32.SerializeToString()
    calibration = calibrate(fp32, [feed()])
    quantization.quantize(fp32, smoothing=calibration.smoothing)
    assert fp32.SerializeToString() == before


@pytest.mark.slow
def test_attention_nodes_and_token_tasks():
    model = tiny_model("tokens", layers=1, hidden=64)
    tiny_masks(model)
    proto = export_onnx(model, opset=23)
    form = quantization.quantize(proto)
    assert "Attention" in {node.op_type for node in form.graph.node}
    assert arrays(form)["classifier.weight.T"].dtype == np.float32
    real = feed()["attention_mask"].astype(bool)
    assert error(logits(form)[real], logits(proto)[real]) < 0.2


def test_what_cannot_be_quantised_is_refused(fp32):
    with pytest.raises(ValueError, match="no fp32 weights no_such_matrix"):
        quantization.quantize(fp32, keep_fp32=["no_such_matrix"])
    with pytest.raises(BundleError, match="no fp32 matrices or tables"):
        quantization.quantize(quantization.quantize(fp32))
    with pytest.raises(BundleError, match="multiple of 32"):
        quantization.quantize_blocks(np.ones((4, 48), np.float32))


# --- calibration -----------------------------------------------------------------------------------------------------


def test_smoothing_changes_nothing_but_rounding():
    random = np.random.default_rng(0)
    x, weight = random.standard_normal((50, 64)).astype(np.float32), random.standard_normal((64, 32))
    x[:, 7] *= 50
    weight = weight.astype(np.float32)
    factors, before, after = smooth(x, weight)
    assert (factors >= 1).all()
    assert factors[7] == factors.max() > 10
    assert np.median(factors) == 1
    assert after < before / 2
    assert (x / factors) @ (weight * factors[:, None]) == pytest.approx(x @ weight, abs=1e-3)


def test_inputs_without_outliers_are_left_alone():
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (200, 64)).astype(np.float32)
    factors, before, after = smooth(x, random.standard_normal((64, 32)).astype(np.float32))
    assert factors is None
    assert before == after < 0.02


def test_an_input_that_is_always_zero_has_no_error():
    assert smooth(np.zeros((9, 4), np.float32), np.ones((4, 3), np.float32)) == (None, 0, 0)


def test_outliers_are_found_and_mended(with_outliers):
    batches = [feed(seed=seed) for seed in range(4)]
    calibration = calibrate(with_outliers, batches)
    for layer in (0, 1):
        name = f"roberta.encoder.layer.{layer}.intermediate.dense.weight.T"
        assert calibration.outlier[name] > 20
        assert calibration.error[name] < calibration.plain[name] / 2
        assert set(np.argsort(calibration.smoothing[name])[-2:]) == {3, 40}
    assert set(calibration.error) == {name for name, _ in quantization.matrices_of(with_outliers)}
    # Judged on text that was not calibrated on.
    inputs = feed(rows=40, seed=99)
    exact = logits(with_outliers, inputs)
    plain = error(logits(quantization.quantize(with_outliers), inputs), exact)
    mended = error(
        logits(quantization.quantize(with_outliers, smoothing=calibration.smoothing), inputs), exact
    )
    assert mended < plain / 2


def test_the_error_of_a_product_is_that_of_the_runtime():
    random = np.random.default_rng(1)
    x = random.standard_normal((40, 64)).astype(np.float32)
    weight = random.standard_normal((64, 16)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    found = session_of(quantization.quantize(proto)).run(None, {"x": x})[0]
    assert product_error(x, weight, x @ weight) == pytest.approx(error(found, x @ weight), rel=0.02)


def test_padding_is_not_calibrated_on(fp32):
    inputs = feed(rows=3, length=8)
    longer = {name: np.pad(values, ((0, 0), (0, 9)), constant_values=1) for name, values in inputs.items()}
    longer["attention_mask"][:, 8:] = 0
    short, long = (calibrate(fp32, [entry]) for entry in (inputs, longer))
    assert long.error == pytest.approx(short.error, rel=0.02)


def test_calibration_needs_text(fp32):
    with pytest.raises(ValueError, match="needs text"):
        calibrate(fp32, [])


# --- the choice ------------------------------------------------------------------------------------------------------


def test_outliers_are_chosen_to_be_smoothed_by_measurement(with_outliers):
    calibration = calibrate(with_outliers, [feed(seed=seed) for seed in range(4)])
    inputs = feed(rows=60, seed=5)
    exact = logits(with_outliers, inputs)

    def score(form):
        return {"agreement": 100 * (1 - error(logits(form, inputs), exact))}

    candidates = candidates_for(calibration)
    assert [entry.name for entry in candidates] == ["smoothed", "1 matrices in fp32", "2 matrices in fp32"]
    plain = Candidate("plain")
    choice = choose(
        with_outliers, score, [plain, *candidates], reference={"agreement": 100}, margins={"agreement": 10}
    )
    assert choice.name == "smoothed"
    assert [entry["name"] for entry in choice.tried] == ["plain", "smoothed"], "no more than needed"
    assert score(choice.proto)["agreement"] == choice.tried[1]["agreement"]


def test_four_bit_embeddings_have_eight_bits_to_fall_back_on(with_outliers):
    calibration = calibrate(with_outliers, [feed(seed=seed) for seed in range(4)])
    candidates = candidates_for(calibration, "int4")
    assert [entry.name for entry in candidates][:2] == ["smoothed", "embeddings in eight bits"]
    assert [entry.options["embeddings"] for entry in candidates] == ["int4", "int8", "int8", "int8"]


@pytest.mark.parametrize(
    ("scores", "chosen", "tried"),
    [
        ([(90, 95), (90, 95.4), (90, 95.4)], 0, 1),
        ([(90, 94.9), (89.5, 95), (90, 99)], 1, 2),
        ([(88, 98), (89, 98), (90, 95)], 2, 3),
        ([(90, 90), (80, 98), (89, 94)], 2, 3),
        ([(89, 90), (80, 95), (70, 94)], 0, 3),
    ],
)
def test_the_first_that_is_near_the_reference_in_everything_is_chosen(fp32, scores, chosen, tried):
    candidates = [Candidate(str(number)) for number in range(3)]
    figures = iter(scores)
    choice = choose(
        fp32,
        lambda form: dict(zip(("dev", "agreement"), next(figures))),
        candidates,
        reference={"dev": 90.0, "agreement": 100.0},
        margins={"dev": 0.5, "agreement": 5.0},
    )
    assert choice.name == str(chosen)
    assert len(choice.tried) == tried


def test_scores_that_say_nothing_are_refused(fp32):
    wanted = {"reference": {"dev": 90.0}, "margins": {"dev": 0.5}}
    for figures in ({}, {"dev": float("nan")}, {"agreement": 90.0}):
        with pytest.raises(ValueError, match="expected numbers for dev"):
            choose(fp32, lambda form, figures=figures: figures, [Candidate("plain")], **wanted)
    with pytest.raises(ValueError, match="no candidate"):
        choose(fp32, lambda form: {"dev": 1.0}, [], **wanted)


@pytest.mark.parametrize("words", [False, True])
def test_forms_are_compared_in_batches_that_languages_share(words, tmp_path):
    """The answers are those of each language alone, in its own order, though short texts of all go together."""
    random = np.random.default_rng(0)
    lengths = [[3, 40, 7], [41, 4, 5, 39], [6]]
    ids = [[random.integers(4, 200, length) for length in part] for part in lengths]
    where = [[np.arange(1, length, 2) for length in part] if words else None for part in lengths]
    parts = [
        Encoded(rows, None, marks, np.zeros(len(rows), dtype=bool), special=tiny_special())
        for rows, marks in zip(ids, where)
    ]
    graph = export_onnx(tiny_model("tokens" if words else "text"))
    shapes = []

    def opened(path):
        forward = forward_of(open_session(path))

        def counted(*batch):
            shapes.append(batch[0].shape)
            return forward(*batch)

        return counted

    asked = Questions(None, None, parts, 4, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choosing, "open_session", lambda path: path)
        patch.setattr(choosing, "forward_of", opened)
        found = asked.answers(graph)
    assert shapes == [(4, 6), (4, 41)] or shapes == [(4, 41), (4, 6)]
    onnx.save(graph, tmp_path / "graph.onnx")
    forward = forward_of(open_session(tmp_path / "graph.onnx"))
    for part, own in zip(parts, found, strict=True):
        for one, other in zip(own, collect(forward, part, 1), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_sets_with_and_without_words_are_not_joined():
    rows = [np.array([0, 5, 2])]
    text = Encoded(rows, None, None, np.zeros(1, dtype=bool), special=tiny_special())
    tagged = Encoded(rows, None, [np.array([1])], np.zeros(1, dtype=bool), special=tiny_special())
    with pytest.raises(ValueError, match="with and without words"):
        join_encoded([text, tagged])
