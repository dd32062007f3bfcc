import collections
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tiny import entropy_bits, tiny_masks, tiny_model

from xlmprune.core.errors import BundleError
from xlmprune.export import packing
from xlmprune.export.graph import export_onnx


def packed_bytes(proto: onnx.ModelProto) -> dict[str, int]:
    """Bytes that each packed matrix takes in the file: its mask or gaps and its values, without what matrices share."""
    sizes = dict.fromkeys(packing.packed_names(proto), 0)
    for tensor in proto.graph.initializer:
        if (
            tensor.name.startswith(packing.PREFIX)
            and (name := tensor.name[len(packing.PREFIX) :].rpartition("/")[0]) in sizes
        ):
            sizes[name] += len(tensor.raw_data)
    return sizes


def graph_of(weight, opset=20):
    """A graph whose output is its one matrix, which is called `weight`."""
    output = helper.make_tensor_value_info(
        "out", helper.np_dtype_to_tensor_dtype(weight.dtype), list(weight.shape)
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", ["weight"], ["out"])],
        "one",
        [],
        [output],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def session_of(proto, level=None):
    options = onnxruntime.SessionOptions()
    if level is not None:
        options.graph_optimization_level = level
    return onnxruntime.InferenceSession(proto.SerializeToString(), options)


def weight_of(proto):
    return numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "weight"))


def random_weight(shape, density, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    weight = random.integers(1, 100, shape) * random.choice([-1, 1], shape)
    return np.where(random.random(shape) < density, weight, 0).astype(dtype)


def patterned(n, m, shape, dtype=np.float32, seed=0):
    """Exactly n of every m entries of a row."""
    random = np.random.default_rng(seed)
    order = random.random((*shape[:-1], shape[-1] // m, m)).argsort(-1)
    return np.where(order < n, random.integers(1, 100, order.shape), 0).reshape(shape).astype(dtype)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.floats(0, 1),
    st.sampled_from([np.float32, np.float16, np.int8]),
    st.integers(0, 2**32 - 1),
)
def test_what_is_packed_comes_back_bit_for_bit_from_numpy_and_from_the_runtime(shape, density, dtype, seed):
    weight = random_weight(tuple(shape), density, dtype, seed)
    packed = packing.pack(graph_of(weight), below=1.0, smallest=1)
    onnx.checker.check_model(packed, full_check=True)
    assert same_bits(weight_of(packing.unpack(packed)), weight)
    assert same_bits(session_of(packed).run(None, {})[0], weight)


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
@pytest.mark.parametrize(
    ("weight", "code"),
    [
        (random_weight((96, 128), 0.31), "bits"),
        (random_weight((67, 71), 0.5), "bits"),
        (random_weight((96, 128), 0.05), "gaps"),
        (random_weight((71, 67), 0.002), "gaps"),
        (patterned(2, 4, (96, 128)), "patterns"),
        (patterned(4, 8, (96, 128)), "patterns"),
        (patterned(4, 8, (67, 88)), "patterns"),
        (patterned(1, 4, (67, 92)), "patterns"),
        (patterned(2, 4, (128, 96)).T, "patterns"),
        (patterned(2, 8, (67, 88)).T, "patterns"),
        (patterned(2, 4, (3, 24, 128)), "patterns"),
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value.shape)),
)
def test_each_mask_takes_the_code_that_suits_it(weight, code, dtype):
    weight = np.ascontiguousarray(weight.astype(dtype))
    packed = packing.pack(graph_of(weight))
    parts = {t.name.rpartition("/")[2] for t in packed.graph.initializer if "/weight/" in t.name}
    assert parts == {code, "values"}
    onnx.checker.check_model(packed, full_check=True)
    assert same_bits(weight_of(packing.unpack(packed)), weight)
    assert same_bits(session_of(packed).run(None, {})[0], weight)


@pytest.mark.parametrize(
    ("density", "above"), [(0.31, 1.04), (0.2, 1.11), (0.1, 1.09), (0.05, 1.09), (0.01, 1.14), (0.001, 1.25)]
)
def test_int8_takes_little_more_than_values_and_a_mask_without_structure_need(density, above):
    weight = random_weight((768, 768), density, np.int8)
    found = packed_bytes(packing.pack(graph_of(weight)))["weight"]
    share = np.count_nonzero(weight) / weight.size
    bound = (entropy_bits(share) + 8 * share) * weight.size / 8
    assert bound <= found <= above * bound


def test_two_of_four_takes_two_thirds_of_a_bit():
    weight = patterned(2, 4, (192, 384), np.int8)
    found = packed_bytes(packing.pack(graph_of(weight)))["weight"]
    assert found == weight.size / 2 + weight.size * 2 / 3 / 8


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_nothing_left_and_nothing_pruned(density):
    weight = random_weight((64, 100), density)
    packed = packing.pack(graph_of(weight))
    assert packing.is_packed(packed) == (density == 0)
    assert packed.ByteSize() < 400 or density == 1
    assert same_bits(weight_of(packing.unpack(packed)), weight)
    assert same_bits(session_of(packed).run(None, {})[0], weight)


def test_one_entry_left_at_either_end():
    for place in (0, 6399):
        weight = np.zeros((64, 100), np.float32)
        weight.flat[place] = 3
        packed = packing.pack(graph_of(weight))
        assert same_bits(session_of(packed).run(None, {})[0], weight)
        assert same_bits(weight_of(packing.unpack(packed)), weight)


def test_what_is_not_worth_it_stays_dense():
    for weight in (random_weight((64, 100), 0.7), random_weight((60, 60), 0.3)):
        assert not packing.is_packed(packing.pack(graph_of(weight)))
    integers = random_weight((64, 100), 0.3).astype(np.int64)
    assert not packing.is_packed(packing.pack(graph_of(integers)))
    assert packing.is_packed(packing.pack(graph_of(random_weight((64, 100), 0.7)), below=0.8))


def test_negative_zeros_are_zeros_and_numbers_that_are_none_stay():
    weight = random_weight((64, 100), 0.3)
    weight[weight == 0] = -0.0
    weight[3, :3] = np.nan, np.inf, -np.inf
    packed = packing.pack(graph_of(weight))
    assert packing.packed_names(packed) == ["weight"]
    found = session_of(packed).run(None, {})[0]
    assert np.array_equal(found, weight, equal_nan=True)
    assert not np.signbit(found[found == 0]).any()


def test_an_old_opset_is_refused():
    with pytest.raises(BundleError, match="opset 17, packing needs 18"):
        packing.pack(graph_of(random_weight((64, 100), 0.3), opset=17))


def test_packing_changes_neither_its_argument_nor_what_is_packed_already():
    proto = graph_of(random_weight((64, 100), 0.3))
    before = proto.SerializeToString()
    packed = packing.pack(proto)
    assert proto.SerializeToString() == before
    assert packing.pack(packed) == packed
    assert packing.unpack(packed) == proto
    assert packing.unpack(proto) == proto


def test_an_initializer_that_a_caller_may_override_stays():
    proto = graph_of(random_weight((64, 100), 0.3))
    proto.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [64, 100]))
    assert not packing.is_packed(packing.pack(proto))


@pytest.mark.parametrize("part", ["values", "bits", "gaps"])
def test_a_damaged_matrix_is_named(part):
    packed = packing.pack(graph_of(random_weight((64, 100), 0.05 if part == "gaps" else 0.31)))
    tensor = next(t for t in packed.graph.initializer if t.name.endswith("/" + part))
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(array[:, :-1] if part == "values" else array[:-2], tensor.name))
    with pytest.raises(BundleError, match="'weight' cannot be rebuilt"):
        packing.unpack(packed)
    del packed.graph.initializer[:]
    with pytest.raises(BundleError, match="'weight' cannot be rebuilt"):
        packing.unpack(packed)


# --- whole models ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, onnx.ModelProto]:
    """A model whose matrices are just large enough, in fp32 and int8."""
    model = tiny_model(hidden=48)
    tiny_masks(model)
    fp32 = export_onnx(model)
    path = tmp_path_factory.mktemp("int8") / "model.onnx"
    copy = onnx.ModelProto()
    copy.CopyFrom(fp32)
    quantize_dynamic(copy, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gather"])
    return {"fp32": fp32, "int8": onnx.load(path)}


def feed(rows=3, length=9):
    ids = np.random.default_rng(0).integers(4, 200, (rows, length))
    ids[0, 5:] = 1
    return {"input_ids": ids, "attention_mask": (ids != 1).astype(np.int64)}


def optimized_operators(proto, folder: Path) -> collections.Counter:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file suits this machine only
    onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return collections.Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node)


@pytest.mark.parametrize("form", ["fp32", "int8"])
def test_outputs_are_bit_identical_and_the_same_nodes_run(models, form, tmp_path):
    dense = models[form]
    packed = packing.pack(dense, smallest=2000)
    assert len(packing.packed_names(packed)) == 12
    onnx.checker.check_model(packed, full_check=True)
    assert same_bits(session_of(packed).run(None, feed())[0], session_of(dense).run(None, feed())[0])
    found = optimized_operators(packed, tmp_path)
    assert found == optimized_operators(dense, tmp_path)
    if form == "int8":
        assert found["DynamicQuantizeMatMul"] + found["MatMulIntegerToFloat"] >= 12


@pytest.mark.parametrize("opset", [18, 19, 21, 22, 23, 24, 25])
@pytest.mark.parametrize("weight", [random_weight((64, 100), 0.3), random_weight((64, 100), 0.03)])
def test_other_opsets(weight, opset):
    packed = packing.pack(graph_of(weight, opset))
    assert packing.is_packed(packed)
    onnx.checker.check_model(packed, full_check=True)
    assert same_bits(session_of(packed).run(None, {})[0], weight)


@pytest.mark.slow
def test_a_graph_with_attention_nodes():
    model = tiny_model(hidden=48, layers=1)
    tiny_masks(model)
    dense = export_onnx(model, opset=23)
    packed = packing.pack(dense, smallest=2000)
    assert len(packing.packed_names(packed)) == 6
    assert same_bits(session_of(packed).run(None, feed())[0], session_of(dense).run(None, feed())[0])


def test_unpacked_is_the_dense_graph(models):
    for dense in models.values():
        back = packing.unpack(packing.pack(dense, smallest=2000))
        arrays = {t.name: numpy_helper.to_array(t) for t in dense.graph.initializer}
        assert {t.name for t in back.graph.initializer} == set(arrays)
        assert all(same_bits(numpy_helper.to_array(t), arrays[t.name]) for t in back.graph.initializer)
        assert list(back.graph.node) == list(dense.graph.node)


def test_a_runtime_that_does_not_fold_is_noticed(models, tmp_path):
    packed = packing.pack(models["int8"], smallest=2000)
    onnx.save(packed, tmp_path / "model.onnx")
    assert packing.unfolded(tmp_path / "model.onnx", feed()) == []
    with pytest.warns(UserWarning, match="rebuilt at every call"):
        left = packing.unfolded(tmp_path / "model.onnx", feed(), optimize=False)
    assert sum(name.endswith("/flat") for name in left) == 12
    # Even then the outputs are right.
    session = session_of(packed, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    assert np.isfinite(session.run(None, feed())[0]).all()
