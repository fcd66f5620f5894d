"""The engine is the fastest that is installed for the device, and what was chosen is said."""

import sys

import pytest
import torch

from vggkit import hardware
from vggkit.engines import choosing
from vggkit.engines.choosing import choose_engine
from vggkit.engines.outputs import list_reads
from vggkit.engines.pytorch import PyTorchEngine
from vggkit.engines.weights import ModelFile
from vggkit.errors import BadConfiguration, BadInput, MissingExtra, UnknownName
from vggkit.hardware import computes_bf16, has_accelerator
from vggkit.networks.classifier import Classifier
from vggkit.networks.vgg import VGG

CPU = torch.device("cpu")


@pytest.fixture
def network(tiny) -> VGG:
    return VGG(tiny)


def install(monkeypatch, *packages: str) -> None:
    """As if these alone were installed."""
    monkeypatch.setattr(choosing.importlib.util, "find_spec", lambda name: name if name in packages else None)


class TestOnProcessors:
    def test_openvino_computes_where_it_is_installed(self, network):
        pytest.importorskip("openvino")
        engine, said = choose_engine(network, CPU, precision="fp32")
        assert type(engine).__name__ == "OpenVINOEngine"
        assert said == "OpenVINO in float32"

    def test_then_onnx_runtime(self, network, monkeypatch):
        pytest.importorskip("onnxruntime")
        install(monkeypatch, "onnx", "onnxruntime")
        engine, said = choose_engine(network, CPU, precision="fp32")
        assert type(engine).__name__ == "ONNXEngine"
        assert said == "ONNX Runtime in float32"

    @pytest.mark.parametrize("packages", [(), ("onnx",), ("onnxruntime",)])
    def test_then_pytorch(self, network, monkeypatch, packages):
        install(monkeypatch, *packages)
        engine, said = choose_engine(network, CPU, precision="fp32")
        assert isinstance(engine, PyTorchEngine)
        assert said == 'PyTorch in float32; pip install "vggkit[fast]" makes it faster'

    def test_pytorch_where_onnx_runtime_has_no_bfloat16(self, network, monkeypatch):
        install(monkeypatch, "onnx", "onnxruntime")
        engine, _ = choose_engine(network, CPU, precision="bf16")
        assert isinstance(engine, PyTorchEngine)

    @pytest.mark.parametrize("name", ["pytorch", "openvino", "onnx"])
    @pytest.mark.parametrize("device", ["cpu", CPU])
    def test_the_one_that_was_named(self, network, name, device):
        pytest.importorskip({"pytorch": "torch", "onnx": "onnxruntime"}.get(name, name))
        engine, said = choose_engine(network, device, engine=name, output=["features", "pool5"])
        assert type(engine).__module__ == f"vggkit.engines.{name}"
        assert engine.outputs == ("features", "pool5")
        assert "pip install" not in said

    def test_pytorch_reads_a_file(self, tiny, tmp_path):
        Classifier.create(tiny, labels=["a", "b", "c"]).save(tmp_path / "model.safetensors")
        engine, _ = choose_engine(ModelFile(tmp_path / "model.safetensors"), "cpu", engine="pytorch")
        assert isinstance(engine, PyTorchEngine)


class TestPrecision:
    @pytest.mark.parametrize(("fast", "kind"), [(True, torch.bfloat16), (False, torch.float32)])
    def test_bfloat16_is_taken_where_it_is_fast(self, network, monkeypatch, fast, kind):
        monkeypatch.setattr(choosing, "computes_bf16", lambda device: fast)
        engine, said = choose_engine(network, CPU, engine="pytorch")
        assert engine.dtype == kind
        assert ("multiplies by itself" if fast else "no fast bfloat16") in said

    def test_onnx_runtime_computes_in_float32(self, network, monkeypatch):
        pytest.importorskip("onnxruntime")
        monkeypatch.setattr(choosing, "computes_bf16", lambda device: True)
        _, said = choose_engine(network, CPU, engine="onnx")
        assert said == "ONNX Runtime in float32"
        with pytest.raises(BadConfiguration, match="precision fp32"):
            choose_engine(network, CPU, precision="bf16", engine="onnx")

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere torch is what is asked")
    def test_a_processor_is_known_without_torch_as_torch_knows_it(self):
        expected = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        assert computes_bf16("cpu") == computes_bf16(CPU) == expected

    def test_where_the_system_does_not_tell_torch_is_asked(self, monkeypatch):
        monkeypatch.setattr(hardware, "_list_processor_flags", lambda: None)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert computes_bf16("cpu")


class TestDevices:
    def test_auto_is_the_processor_where_there_is_no_other(self, network, monkeypatch):
        monkeypatch.setattr(choosing, "has_accelerator", lambda: False)
        pytest.importorskip("openvino")
        assert choose_engine(network, precision="fp32")[1] == "OpenVINO in float32"

    def test_torch_has_the_last_word_on_an_accelerator(self, network, monkeypatch):
        monkeypatch.setattr(choosing, "has_accelerator", lambda: True)
        monkeypatch.setattr(choosing, "choose_device", lambda name: torch.device("meta"))
        assert choose_engine(network, precision="fp32")[1] == "PyTorch in float32"

    def test_what_torch_has_is_never_denied(self):
        assert has_accelerator() or not (torch.cuda.is_available() or torch.backends.mps.is_available())

    def test_a_device_that_is_not_there(self, network):
        with pytest.raises(BadInput, match="cuda:99"):
            choose_engine(network, "cuda:99")
        with pytest.raises(BadInput, match="gpu"):
            choose_engine(network, "gpu")

    @pytest.mark.parametrize("name", ["openvino", "onnx"])
    def test_engines_of_the_processor_take_no_gpu(self, network, name):
        with pytest.raises(BadConfiguration, match=r"device is cuda.*device cpu"):
            choose_engine(network, "cuda", engine=name)


class TestRefusing:
    def test_an_engine_nobody_knows(self, network):
        with pytest.raises(UnknownName, match="Did you mean 'openvino'"):
            choose_engine(network, CPU, engine="openvine")

    @pytest.mark.parametrize(
        ("name", "missing", "extra"),
        [("openvino", "openvino", "fast"), ("onnx", "onnx", "onnx"), ("onnx", "onnxruntime", "onnx")],
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

    def test_openvino_computes_them(self, network, monkeypatch):
        pytest.importorskip("openvino")
        monkeypatch.setattr(choosing, "multiplies_bytes", lambda: True)
        ranges = dict.fromkeys(list_reads(network.configuration), (-3.0, 3.0))
        _, said = choose_engine(network, CPU, precision="int8", ranges=ranges)
        assert said == "OpenVINO in int8"

    def test_ranges_of_another_network_are_refused(self, network, monkeypatch):
        pytest.importorskip("openvino")
        monkeypatch.setattr(choosing, "multiplies_bytes", lambda: True)
        with pytest.raises(BadConfiguration, match="not of this network: pool1"):
            choose_engine(network, CPU, precision="int8", ranges=self.RANGES)

    @pytest.mark.parametrize("name", ["pytorch", "onnx"])
    def test_no_other_does(self, network, name):
        with pytest.raises(BadConfiguration, match="take"):
            choose_engine(network, CPU, precision="int8", ranges=self.RANGES, engine=name)

    def test_a_processor_that_may_overflow_is_not_asked(self, network, monkeypatch):
        monkeypatch.setattr(hardware, "_list_processor_flags", lambda: frozenset({"avx2"}))
        with pytest.raises(BadConfiguration, match="AVX VNNI"):
            choose_engine(network, CPU, precision="int8", ranges=self.RANGES)

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"precision": "int8"}, "--keep-ranges"),
            ({"precision": "int8", "ranges": {}}, "measure_ranges"),
            ({"precision": "fp32", "ranges": RANGES}, "with fp32"),
        ],
    )
    @pytest.mark.parametrize("name", ["auto", "openvino"])
    def test_ranges_and_int8_go_together(self, network, name, wrong, said):
        with pytest.raises(BadConfiguration, match=said):
            choose_engine(network, CPU, engine=name, **wrong)
