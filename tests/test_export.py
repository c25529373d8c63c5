"""ONNX files: equal to the network, refused when they are not, the same bytes from anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import prunecli
from prunecli import checkpoint as checkpoints
from prunecli import exporting, measure, models, surgery
from prunecli.checkpoint import Checkpoint, pack_mask
from prunecli.errors import PruneError, UsageError, VerificationError
from prunecli.exporting import Form, to_onnx, verify
from prunecli.exporting.half import halve
from prunecli.exporting.sparse import sparsify
from prunecli.options.export import ExportOptions
from prunecli.sidecar import Arch, Data, Sidecar, Step

EXAMPLE = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
DIGITS = Data(
    name="digits", classes=10, shape=[1, 32, 32], mean=[0.3], std=[0.3], train_size=1438, test_size=359,
    class_names=[str(i) for i in range(10)],
)  # fmt: skip


def trained_looking(network: nn.Module) -> nn.Module:
    """`network` with batch normalisations that do something, as after training."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.5, 0.5),
                (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2.0),
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    return network.eval()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return trained_looking(models.build("resnet20", {"width": 8}))


@pytest.fixture(scope="module")
def dense(resnet: nn.Module) -> bytes:
    return to_onnx(resnet, EXAMPLE, {"prunecli.arch": "resnet20"})


@pytest.fixture
def lenet(tmp_path: Path) -> Path:
    """A checkpoint of a masked LeNet-5 without data at hand."""
    torch.manual_seed(0)
    return write_checkpoint(tmp_path / "lenet.safetensors", models.build("lenet5", {}), 0.9)


def write_checkpoint(path: Path, network: nn.Module, sparsity: float, data: Data | None = None) -> Path:
    masks = {}
    for name, parameter in network.named_parameters():
        if parameter.dim() > 1 and sparsity:
            keep = parameter.abs() >= parameter.abs().flatten().quantile(sparsity)
            parameter.data *= keep
            masks[name] = pack_mask(keep)
    cost = measure.cost(network, torch.zeros(1, 1, 32, 32))
    options = {"arch": "lenet5", "training": {"epochs": 3, "seed": 0}, "init": "/secret/x.pt", "augment": False}
    sidecar = Sidecar(
        arch=Arch(name="lenet5"), cost=cost, masks=masks, data=data,
        history=[Step(command="train", options=options, versions={})],
    )  # fmt: skip
    checkpoints.save(Checkpoint(dict(network.state_dict()), sidecar), path)
    return path


def run(model: bytes, inputs: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(["output"], {"input": inputs.numpy()})[0]


def test_outputs_are_pytorchs_at_every_batch_size(resnet: nn.Module, dense: bytes) -> None:
    found = verify(dense, resnet, [EXAMPLE[:1], EXAMPLE[:3], EXAMPLE])
    assert found.relative < 1e-5
    with torch.no_grad():
        np.testing.assert_allclose(run(dense, EXAMPLE), resnet(EXAMPLE).numpy(), atol=1e-4)


def test_file_is_valid_self_contained_and_folded(dense: bytes) -> None:
    model = onnx.load_from_string(dense)
    onnx.checker.check_model(model, full_check=True)
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 19
    assert "BatchNormalization" not in operators
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [
        "batch",
        3,
        32,
        32,
    ]
    assert [dim.dim_param or dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim] == ["batch", 10]
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 18}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert (model.producer_name, model.producer_version) == ("prunecli", prunecli.__version__)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"prunecli.arch": "resnet20"}


def test_file_tells_nothing_of_the_machine(dense: bytes) -> None:
    for path in (str(Path(__file__).parent.parent), sys.prefix, str(Path(torch.__file__).parent), "forward", ".py"):
        assert path.encode() not in dense


def test_a_network_that_is_training_is_exported_for_evaluation_and_left_as_it_was() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    network[1].eval()
    model = to_onnx(network, torch.randn(2, 4), {})
    assert [node.op_type for node in onnx.load_from_string(model).graph.node] == ["Gemm"]
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert network[1].num_batches_tracked == 0


def test_same_bytes_from_another_folder_and_process(lenet: Path, tmp_path: Path) -> None:
    script = "import sys, prunecli; prunecli.export(prunecli.ExportOptions(checkpoint=sys.argv[1], output=sys.argv[2]))"
    prunecli.export(prunecli.ExportOptions(checkpoint=str(lenet), output=str(tmp_path / "here.onnx")))
    (tmp_path / "elsewhere").mkdir()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONHASHSEED": "7"}
    subprocess.run(
        [sys.executable, "-c", script, "../lenet.safetensors", "there.onnx"],
        cwd=tmp_path / "elsewhere", env=environment, check=True,
    )  # fmt: skip
    hashes = [hashlib.sha256((tmp_path / f).read_bytes()).digest() for f in ("here.onnx", "elsewhere/there.onnx")]
    assert hashes[0] == hashes[1]


def test_command_exports_masks_as_sparse_weights_with_provenance(
    lenet: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    exported = prunecli.export(ExportOptions(checkpoint=str(lenet), sparse=True))
    assert exported.path == lenet.with_suffix(".onnx")
    assert exported.size == exported.path.stat().st_size < 0.4 * lenet.stat().st_size
    assert exported.difference.relative < 1e-5
    assert "32 random inputs" in exported.inputs
    assert "5 tensors are stored sparse" in exported.notes[0]
    model = onnx.load(exported.path)
    assert sum(node.op_type == "Constant" for node in model.graph.node) == 5
    told = {entry.key.removeprefix("prunecli."): entry.value for entry in model.metadata_props}
    assert json.loads(told["history"]) == [{"command": "train", "arch": "lenet5", "training": {"epochs": 3, "seed": 0}}]
    assert (told["params"], told["macs"], told["version"]) == ("61706", "416520", prunecli.__version__)
    assert told["weights_sha256"] == hashlib.sha256(lenet.read_bytes()).hexdigest()
    assert capfd.readouterr() == ("", "")
    assert [p.name for p in lenet.parent.iterdir() if p.name.startswith(".")] == []


def test_command_checks_on_the_test_images_of_the_checkpoints_data(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "d.safetensors", models.build("lenet5", {}), 0.0, DIGITS)
    exported = prunecli.export(ExportOptions(checkpoint=str(path), batch=5, opset=20))
    assert exported.inputs == "32 test images of digits, in batches of 5"
    graph = onnx.load(exported.path)
    assert graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 5
    assert graph.opset_import[0].version == 20
    assert json.loads(exported.data()["onnx"] and json.dumps(exported.data()))["dynamic_batch"] is False
    assert "largest difference" in exported.text()


def test_test_images_that_are_wanted_and_not_there(lenet: Path) -> None:
    with pytest.raises(PruneError, match="no data: the checkpoint records none"):
        prunecli.export(ExportOptions(checkpoint=str(lenet), inputs="data"))
    assert not lenet.with_suffix(".onnx").exists()


def test_a_file_that_fails_the_check_does_not_replace_the_old_one(tmp_path: Path) -> None:
    network = models.build("lenet5", {})
    with torch.no_grad():
        next(p for p in network.parameters() if p.dim() == 4).mul_(1e6)  # activations beyond 65504
    path = write_checkpoint(tmp_path / "x.safetensors", network, 0.0)
    old = tmp_path / "x.onnx"
    old.write_bytes(b"old")
    with pytest.raises(VerificationError, match="not finite") as caught:
        prunecli.export(ExportOptions(checkpoint=str(path), fp16=True, inputs="random"))
    assert caught.value.exit_code == 5
    assert old.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.onnx", "x.safetensors"]


def test_fp16_halves_the_file_and_keeps_float32_ends(resnet: nn.Module, dense: bytes) -> None:
    model = to_onnx(resnet, EXAMPLE, {}, Form(fp16=True))
    assert len(model) < 0.6 * len(dense)
    graph = onnx.load_from_string(model).graph
    assert {t.data_type for t in graph.initializer} <= {onnx.TensorProto.FLOAT16, onnx.TensorProto.INT64}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert 1e-6 < verify(model, resnet, [EXAMPLE], fp16=True).relative < 1e-2


def test_cut_network(dense: bytes) -> None:
    torch.manual_seed(0)
    network = trained_looking(models.build("resnet20", {"width": 8}))
    structure = surgery.trace(network, EXAMPLE[:1])
    plan = surgery.Plan({g.key: list(range(0, g.units, 2)) for g in structure.groups if g.prunable})
    surgery.apply(network, structure, plan)
    model = to_onnx(network, EXAMPLE, {})
    assert verify(model, network, [EXAMPLE[:1], EXAMPLE]).relative < 1e-5
    assert len(model) < 0.6 * len(dense)


@pytest.mark.parametrize("what", ["weight", "shape", "nan", "broken"])
def test_verification_notices_damage(resnet: nn.Module, dense: bytes, what: str) -> None:
    model = onnx.load_from_string(dense)
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    values = numpy_helper.to_array(weight).copy()
    if what == "weight":
        values[0] += 0.05
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    elif what == "nan":
        values[0] = np.nan
        weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    elif what == "shape":
        last = model.graph.node[-1]
        last.output[0] = "inner"
        model.graph.node.append(helper.make_node("Transpose", ["inner"], ["output"]))
        for _ in range(2):
            model.graph.output[0].type.tensor_type.shape.dim.pop()
    else:
        model.graph.node[3].input[0] = "nothing"
    message = {"weight": "differs by", "shape": "has shape", "nan": "not finite", "broken": "does not load"}[what]
    with pytest.raises(VerificationError, match=message):
        verify(model.SerializeToString(), resnet, [EXAMPLE])


def test_pytorchs_own_output_must_be_finite() -> None:
    network = nn.Linear(2, 2)
    model = to_onnx(network, torch.ones(2, 2), {})
    with pytest.raises(VerificationError, match="not finite in PyTorch"):
        verify(model, network, [torch.full((1, 2), torch.inf)])


class TwoHeads(nn.Module):
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.a(x), "aux": self.b(x)}


def test_outputs_by_name() -> None:
    network = TwoHeads()
    model = to_onnx(network, torch.randn(2, 3), {})
    assert [value.name for value in onnx.load_from_string(model).graph.output] == ["out", "aux"]
    assert verify(model, network, [torch.randn(5, 3)]).relative < 1e-5


class BatchOfFour(nn.Module):
    """Works for four examples only."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.arange(4.0)[:, None]


class Branching(nn.Module):
    """Takes another path for another value."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


def test_what_onnx_cannot_express_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PruneError) as caught:
        to_onnx(BatchOfFour(), torch.randn(4, 3), {})
    assert "--batch" in caught.value.hint
    with pytest.raises(PruneError, match="cannot be converted"):
        to_onnx(Branching(), torch.randn(4, 3), {}, Form(dynamic=False))
    assert capfd.readouterr() == ("", "")
    model = to_onnx(BatchOfFour(), torch.randn(4, 3), {}, Form(dynamic=False))
    assert verify(model, BatchOfFour(), [torch.randn(4, 3)]).absolute == 0


def test_operator_set_that_the_exporter_does_not_write() -> None:
    with pytest.raises(PruneError, match="wrote operator set"):
        to_onnx(nn.Linear(2, 2), torch.ones(2, 2), {}, Form(opset=99))


def test_network_beyond_two_gigabytes() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(2**15, 2**14))
    with pytest.raises(PruneError, match="2 GiB"):
        to_onnx(network, torch.ones(2, 2), {})


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(PruneError, match="onnxscript") as caught:
        to_onnx(nn.Linear(2, 2), torch.ones(2, 2), {})
    assert "pip install" in caught.value.hint


def graph_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int]) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("input", "output")]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_halving_keeps_statistics_that_float16_cannot_hold() -> None:
    # gamma (x - mean) / sqrt(var + eps) + beta, with a variance below and one above float16's range
    constants = {
        "gamma": np.array([1e-4, 3.0], np.float32), "beta": np.array([0.5, -1.0], np.float32),
        "mean": np.array([0.0, 70000.0], np.float32), "var": np.array([1e-9, 1e10], np.float32),
    }  # fmt: skip
    node = helper.make_node("BatchNormalization", ["input", *constants], ["output"], epsilon=1e-10)
    model = graph_of([node], constants, [2, 2])
    halve(model)
    onnx.checker.check_model(model, full_check=True)
    inputs = torch.tensor([[1.0, 1000.0], [-2.0, 0.0]])
    # (x - 0) 1e-4 / sqrt(1.1e-9) + 0.5 and (x - 70000) 3 / 1e5 - 1
    expected = [[1e-4 / 1.1e-9**0.5 + 0.5, -3.07], [-2e-4 / 1.1e-9**0.5 + 0.5, -3.1]]
    np.testing.assert_allclose(run(model.SerializeToString(), inputs), expected, rtol=2e-3)


def test_halving_spares_what_must_be_float32() -> None:
    resize = helper.make_node("Resize", ["input", "", "scales"], ["big"], mode="nearest")
    pool = helper.make_node("MaxPool", ["big"], ["output"], kernel_shape=[2, 2], strides=[2, 2])
    model = graph_of([resize, pool], {"scales": np.array([1, 1, 2, 2], np.float32)}, [1, 1, 2, 2])
    halve(model)
    onnx.checker.check_model(model, full_check=True)
    inputs = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    np.testing.assert_array_equal(run(model.SerializeToString(), inputs), inputs)


@pytest.mark.parametrize("dtype, share", [(np.float32, 2 / 3), (np.float16, 4 / 5)])
def test_sparse_storage_begins_where_it_pays(dtype: type, share: float) -> None:
    size = 3000
    for zeros, sparse in ((int(share * size) - 30, False), (int(share * size) + 30, True)):
        values = np.ones(size, dtype)
        values[:zeros] = 0
        model = graph_of([], {"w": values.reshape(3, -1)}, [3, size // 3])
        before = model.ByteSize()
        sparsify(model)
        assert (len(model.graph.initializer) == 0) == sparse
        assert (model.ByteSize() < before) == sparse


def test_sparse_weights_are_the_weights() -> None:
    values = np.zeros((64, 64), np.float32)
    values[3, 5], values[60, 0] = 2.0, -0.5
    node = helper.make_node("Gemm", ["input", "w"], ["output"])
    model = graph_of([node], {"w": values}, [2, 64])
    sparsify(model)
    onnx.checker.check_model(model, full_check=True)
    inputs = torch.randn(2, 64)
    np.testing.assert_allclose(run(model.SerializeToString(), inputs), inputs.numpy() @ values, rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [{"opset": 17}, {"batch": 0}, {"inputs": "dta"}, {"output": "x.pt"}, {"inputs": "random", "data": "digits"}],
)
def test_options_that_mean_nothing(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        ExportOptions(**{"checkpoint": "x.safetensors", **wrong})


def test_unwritable_folder(lenet: Path) -> None:
    with pytest.raises(PruneError, match="cannot write") as caught:
        exporting.write(lenet.parent / "missing" / "x.onnx", b"content")
    assert "mkdir -p" in caught.value.hint


def test_what_a_killed_write_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.onnx.pending").write_bytes(b"the beginning of a longer file")
    exporting.write(tmp_path / "x.onnx", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    assert (tmp_path / "x.onnx").read_bytes() == b"content"


def test_of_several_writers_at_once_one_wins_whole(tmp_path: Path) -> None:
    contents = [bytes([i]) * 300_000 for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda content: exporting.write(tmp_path / "x.onnx", content), contents * 5))
    assert (tmp_path / "x.onnx").read_bytes() in contents
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").mkdir()
    with pytest.raises(PruneError, match="cannot write it: Is a directory"):
        exporting.write(tmp_path / "x.onnx", b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
