"""The engine is the fastest that is installed for the device, and what was chosen is said."""

import sys

import pytest
import torch

from conftest import WITHOUT_FEATURES
from vggkit.classifier import Classifier
from vggkit.engines import info
from vggkit.engines import select as choosing
from vggkit.engines.info import EngineInfo, explain_choice
from vggkit.engines.model_weights import ModelFile, NetworkWeights
from vggkit.engines.outputs import list_reads
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.select import choose_engine, resolve_choice, resolve_for_batches
from vggkit.errors import BadConfiguration, BadInput, MissingExtra, UnknownName
from vggkit.hardware import computes_bf16, has_accelerator, multiplies_bytes
from vggkit.models.vgg import VGG

CPU = torch.device("cpu")


@pytest.fixture
def network(tiny) -> VGG:
    return VGG(tiny)


def install(monkeypatch, *packages: str) -> None:
    """As if these alone were installed."""
    monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda name: name if name in packages else None)


def explain(engine, *, precision="auto", engine_requested="auto"):
    return explain_choice(engine.info, precision=precision, engine=engine_requested)


class TestOnProcessors:
    def test_ncnn_computes_float32_on_x86_where_it_is_installed(self, network, monkeypatch):
        pytest.importorskip("ncnn")
        monkeypatch.setattr(choosing, "has_x86", lambda: True)
        engine = choose_engine(network, CPU, precision="fp32")
        assert type(engine).__name__ == "NCNNEngine"
        assert (
            explain(engine, precision="fp32")
            == "ncnn in float32; it is the fastest in float32 on x86 for images of this size"
        )
        assert explain(engine, precision="fp32", engine_requested="ncnn") == "ncnn in float32"
        assert engine.info.version == sys.modules["ncnn"].__version__
        monkeypatch.setattr(choosing, "has_x86", lambda: False)
        assert resolve_choice(CPU, precision="fp32")[1] != "ncnn"

    @pytest.mark.parametrize("x86", [True, False])
    def test_then_openvino(self, network, monkeypatch, x86):
        pytest.importorskip("openvino")
        install(monkeypatch, "openvino", "onnx", "onnxruntime")
        for place in (choosing, info):
            monkeypatch.setattr(place, "has_x86", lambda: x86)
        engine = choose_engine(network, CPU, precision="fp32")
        assert type(engine).__name__ == "OpenVINOEngine"
        advice = '; pip install "vggkit[ncnn]" makes it faster for images of 112 pixels and more'
        faster = advice if x86 else ""
        assert explain(engine, precision="fp32") == f"OpenVINO in float32{faster}"
        assert explain(engine, precision="fp32", engine_requested="openvino") == "OpenVINO in float32"
        version = sys.modules["openvino"].__version__
        assert engine.info == EngineInfo(name="openvino", precision="fp32", device="cpu", version=version)

    def test_then_onnx_runtime(self, network, monkeypatch):
        pytest.importorskip("onnxruntime")
        install(monkeypatch, "onnx", "onnxruntime")
        engine = choose_engine(network, CPU, precision="fp32")
        assert type(engine).__name__ == "ONNXEngine"
        assert explain(engine, precision="fp32") == "ONNX Runtime in float32"
        assert engine.info.version == sys.modules["onnxruntime"].__version__

    @pytest.mark.parametrize("packages", [(), ("onnx",), ("onnxruntime",)])
    def test_then_pytorch(self, network, monkeypatch, packages):
        install(monkeypatch, *packages)
        engine = choose_engine(network, CPU, precision="fp32")
        assert isinstance(engine, PyTorchEngine)
        assert explain(engine, precision="fp32") == 'PyTorch in float32; pip install "vggkit[fast]" makes it faster'

    def test_pytorch_where_onnx_runtime_has_no_bfloat16(self, network, monkeypatch):
        install(monkeypatch, "onnx", "onnxruntime")
        engine = choose_engine(network, CPU, precision="bf16")
        assert isinstance(engine, PyTorchEngine)

    @pytest.mark.parametrize("name", ["pytorch", "openvino", "onnx", "ncnn"])
    @pytest.mark.parametrize("device", ["cpu", CPU])
    def test_the_one_that_was_named(self, network, name, device):
        pytest.importorskip({"pytorch": "torch", "onnx": "onnxruntime"}.get(name, name))
        engine = choose_engine(network, device, engine=name, output=["features", "pool5"])
        assert type(engine).__module__ == f"vggkit.engines.{name}"
        assert engine.outputs == ("features", "pool5")
        assert "pip install" not in explain(engine, engine_requested=name)
        assert (engine.info.name, engine.info.device) == (name, "cpu")

    def test_pytorch_reads_a_file(self, tiny, tmp_path):
        Classifier.create(tiny, labels=["a", "b", "c"]).save(tmp_path / "model.safetensors")
        engine = choose_engine(ModelFile(tmp_path / "model.safetensors"), "cpu", engine="pytorch")
        assert isinstance(engine, PyTorchEngine)


class TestPrecision:
    @pytest.mark.parametrize("name", ["pytorch", "openvino", "auto"])
    def test_bfloat16_is_taken_where_it_is_fast(self, network, able, name, monkeypatch):
        pytest.importorskip("openvino")
        install(monkeypatch, "openvino")
        said = "PyTorch" if name == "pytorch" else "OpenVINO"
        reason = "bfloat16, which this processor multiplies natively"
        if not able:
            reason = "float32, because this processor has no fast bfloat16"
        engine = choose_engine(network, CPU, engine=name)
        assert explain(engine, engine_requested="openvino") == f"{said} in {reason}"
        assert resolve_choice(CPU, engine=name)[1:] == (said.lower(), "bf16" if able else "fp32")

    @pytest.mark.parametrize("name", ["auto", "openvino"])
    def test_where_openvino_has_no_bfloat16_what_it_computes_in_is_said(self, network, able, name):
        pytest.importorskip("openvino")
        engine = choose_engine(network, CPU, precision="bf16", engine=name)
        assert resolve_choice(CPU, precision="bf16", engine=name)[1:] == ("openvino", "bf16" if able else "fp32")
        assert engine.info.precision == ("bf16" if able else "fp32")
        assert explain(engine, precision="bf16") == (
            "OpenVINO in bfloat16" if able else "OpenVINO in float32, because this processor has no fast bfloat16"
        )

    def test_pytorch_computes_bfloat16_on_any_processor(self, network, able):
        engine = choose_engine(network, CPU, precision="bf16", engine="pytorch")
        assert (engine.dtype, engine.info.precision) == (torch.bfloat16, "bf16")
        assert explain(engine, precision="bf16", engine_requested="pytorch") == "PyTorch in bfloat16"

    @pytest.mark.parametrize(("name", "title"), [("onnx", "ONNX Runtime"), ("ncnn", "ncnn")])
    def test_some_compute_in_float32_alone(self, network, able, name, title):
        pytest.importorskip({"onnx": "onnxruntime"}.get(name, name))
        assert choose_engine(network, CPU, engine=name).info.describe() == f"{title} in float32"
        with pytest.raises(BadConfiguration, match=rf"{title} computes in float32.*precision fp32"):
            choose_engine(network, CPU, precision="bf16", engine=name)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere torch is what is asked")
    def test_a_processor_is_known_without_torch_as_torch_knows_it(self, monkeypatch):
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        expected = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        assert computes_bf16("cpu") == computes_bf16(CPU) == expected

    @pytest.mark.parametrize("there", [True, False])
    def test_where_the_system_does_not_tell_torch_is_asked(self, monkeypatch, set_flags, there):
        set_flags(None)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: there)
        assert computes_bf16("cpu") == there
        assert not multiplies_bytes()

    @pytest.mark.parametrize(
        ("limit", "bf16", "exact_bytes"),
        [
            ("AVX2", False, False),
            ("avx2_vnni", False, True),
            ("AVX512_CORE", False, False),
            ("AVX512_CORE_VNNI", False, True),
            ("AVX512_CORE_BF16", True, True),
            ("AVX512_CORE_AMX", True, True),
            ("DEFAULT", True, True),
        ],
    )
    def test_what_onednn_may_not_use_is_not_counted_on(self, monkeypatch, set_flags, limit, bf16, exact_bytes):
        set_flags(frozenset({"avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}))
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert (computes_bf16("cpu"), multiplies_bytes()) == (bf16, exact_bytes)
        set_flags(WITHOUT_FEATURES)
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert (computes_bf16("cpu"), multiplies_bytes()) == (False, False)


class TestDevices:
    def test_auto_is_the_processor_where_there_is_no_other(self, network, monkeypatch):
        monkeypatch.setattr(choosing, "has_accelerator", lambda: False)
        pytest.importorskip("openvino")
        install(monkeypatch, "openvino")
        assert choose_engine(network, precision="fp32").info.describe() == "OpenVINO in float32"

    def test_torch_has_the_last_word_on_an_accelerator(self, network, monkeypatch):
        monkeypatch.setattr(choosing, "has_accelerator", lambda: True)
        monkeypatch.setattr(choosing, "choose_device", lambda name: torch.device("meta"))
        assert choose_engine(network, precision="fp32").info.describe() == "PyTorch in float32"

    def test_what_torch_has_is_never_denied(self):
        assert has_accelerator() or not (torch.cuda.is_available() or torch.backends.mps.is_available())

    def test_a_device_that_is_not_there(self, network):
        with pytest.raises(BadInput, match="cuda:99"):
            choose_engine(network, "cuda:99")
        with pytest.raises(BadInput, match="gpu"):
            choose_engine(network, "gpu")

    @pytest.mark.parametrize("name", ["openvino", "onnx", "ncnn"])
    def test_engines_of_the_processor_take_no_gpu(self, network, name):
        with pytest.raises(BadConfiguration, match=r"device is cuda.*device cpu"):
            choose_engine(network, "cuda", engine=name)


class TestRefusing:
    def test_an_engine_nobody_knows(self, network):
        with pytest.raises(UnknownName, match="Did you mean 'openvino'"):
            choose_engine(network, CPU, engine="openvine")

    @pytest.mark.parametrize(
        ("name", "missing", "extra"),
        [
            ("openvino", "openvino", "fast"),
            ("onnx", "onnx", "onnx"),
            ("onnx", "onnxruntime", "onnx"),
            ("ncnn", "ncnn", "ncnn"),
        ],
    )
    def test_an_engine_that_is_not_installed(self, network, monkeypatch, name, missing, extra):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(MissingExtra, match=rf'pip install "vggkit\[{extra}\]"'):
            choose_engine(network, CPU, engine=name)


def test_a_precision_nobody_knows(network):
    with pytest.raises(UnknownName, match="Did you mean 'bf16'"):
        choose_engine(network, CPU, precision="fp16")


class TestBytes:
    RANGES = {"images": (-3.0, 3.0)}

    def test_openvino_computes_them_on_any_processor(self, network, able):
        pytest.importorskip("openvino")
        activation_ranges = dict.fromkeys(list_reads(network.configuration), (-3.0, 3.0))
        engine = choose_engine(network, CPU, precision="int8", activation_ranges=activation_ranges)
        assert engine.info.weight_bits == (8 if able else 7)
        assert explain(engine, precision="int8") == (
            "OpenVINO in int8"
            if able
            else "OpenVINO in int8 with 7-bit weights, because this processor is not known to have VNNI or AMX"
        )

    def test_it_is_never_chosen_by_itself(self, able):
        assert resolve_choice(CPU)[2] != "int8"

    def test_ranges_of_another_network_are_refused(self, network, able):
        pytest.importorskip("openvino")
        with pytest.raises(BadConfiguration, match="not of this network: pool1"):
            choose_engine(network, CPU, precision="int8", activation_ranges=self.RANGES)

    @pytest.mark.parametrize("name", ["pytorch", "onnx", "ncnn"])
    def test_no_other_does(self, network, able, name):
        with pytest.raises(BadConfiguration, match="take"):
            choose_engine(network, CPU, precision="int8", activation_ranges=self.RANGES, engine=name)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"precision": "int8"}, "--keep-ranges"),
            ({"precision": "int8", "activation_ranges": {}}, "measure_ranges"),
            ({"precision": "fp32", "activation_ranges": RANGES}, "with fp32"),
        ],
    )
    @pytest.mark.parametrize("name", ["auto", "openvino"])
    def test_ranges_and_int8_go_together(self, network, able, name, wrong, said):
        with pytest.raises(BadConfiguration, match=said):
            choose_engine(network, CPU, engine=name, **wrong)


@pytest.mark.parametrize(
    ("flags", "options", "expected"),
    [
        ({"avx512_bf16"}, {}, ("ncnn", "fp32")),
        ({"avx512_bf16"}, {"precision": "bf16"}, ("ncnn", "fp32")),
        ({"avx512_bf16"}, {"pixels": 112}, ("openvino", "bf16")),
        ({"avx512_bf16"}, {"engine": "openvino"}, ("openvino", "bf16")),
        ({"avx512_bf16", "amx_bf16"}, {}, ("openvino", "bf16")),
        (set(), {}, ("ncnn", "fp32")),
        ({"avx512_vnni"}, {"precision": "int8"}, ("openvino", "int8")),
    ],
)
def test_batches_of_large_images(flags, options, expected, monkeypatch):
    """In float32 where ncnn is faster in it than OpenVINO is in bfloat16."""
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr("vggkit.hardware._list_processor_flags", lambda: frozenset(flags))
    monkeypatch.setattr("vggkit.hardware.platform.machine", lambda: "x86_64")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    wanted = {"precision": "auto", "engine": "auto", "pixels": 224} | options
    assert resolve_for_batches("cpu", **wanted)[1:] == expected


@pytest.mark.parametrize(("pixels", "expected"), [(32, "openvino"), (112, "ncnn"), (None, "ncnn")])
def test_ncnn_is_for_larger_images(network, pixels, expected, monkeypatch):
    """Of 32 pixels OpenVINO computes four times as many in the same time."""
    pytest.importorskip("openvino")
    pytest.importorskip("ncnn")
    monkeypatch.setattr("vggkit.hardware.platform.machine", lambda: "x86_64")
    weights = NetworkWeights(network, pixels=pixels)
    assert choose_engine(weights, "cpu", precision="fp32").info.name == expected
