"""The engine that computes with ncnn: nets, threads, and processes.

Shape letters: N images, C channels, H and W pixels.
"""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engines import KINDS, POOL, SMALL, build, build_ncnn, build_pytorch, draw, measure_error

from vggkit.engines.outputs import list_outputs
from vggkit.models.configuration import MODELS, Configuration
from vggkit.models.configure import configure

pytest.importorskip("ncnn")


@st.composite
def configurations(choose: st.DrawFn) -> Configuration:
    """Networks whose numbers of channels fill ncnn's vectors of 4, 8 and 16, and do not."""
    widths = st.sampled_from([1, 3, 4, 8, 12, 16, 20, 32])
    blocks = tuple(choose(st.lists(st.lists(widths, min_size=1, max_size=2).map(tuple), min_size=1, max_size=3)))
    hidden = tuple(choose(st.lists(st.sampled_from([3, 8, 20]), max_size=2)))
    return Configuration(
        blocks=blocks,
        kernels=tuple(tuple(choose(st.sampled_from([1, 3, 5])) for _ in block) for block in blocks),
        batch_norm=choose(st.booleans()),
        lrn_after=("relu1_1",) if choose(st.booleans()) else (),
        pooling=choose(st.sampled_from(["max", "average"])),
        head=choose(st.sampled_from(["fc", "dense", "pool"])),
        grid=choose(st.integers(1, 3)),
        statistics=choose(st.sampled_from(["mean", "mean+std"])),
        hidden=hidden,
        ranks=tuple(choose(st.sampled_from([None, 2])) for _ in range(len(hidden) + 1)),
        num_classes=choose(st.sampled_from([2, 5, 16])),
        in_channels=choose(st.sampled_from([1, 3, 4])),
    )


@settings(max_examples=12)
@given(
    configuration=configurations(), extra=st.tuples(st.integers(0, 9), st.integers(0, 9)), count=st.integers(1, 4)
)
def test_random_networks(configuration, extra, count):
    """Every output of a network, and the logits alone, of one image or of several."""
    network, names = build(configuration), list_outputs(configuration)
    sides = [configuration.minimum_side + 4 + each for each in extra]
    images = draw(configuration, *sides)[:count]
    expected = build_pytorch(network, output=names).compute(images)
    found = build_ncnn(network, output=names).compute(images)
    assert list(found) == names
    for name in names:
        assert found[name].shape == expected[name].shape, name
        spread = max(float(expected[name].std()), float(np.abs(expected[name]).max()) / 10, 1e-6)
        # Not 1e-4: where a few products cancel, each engine is as far from the others.
        assert np.abs(found[name] - expected[name]).max() < 2e-3 * spread, name
    alone = build_ncnn(network).run(images)
    np.testing.assert_allclose(alone, found["logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", MODELS)
def test_the_papers_configurations(name):
    """A to E, with few channels."""
    full = configure(name, num_classes=7)
    blocks = tuple(tuple(width // 16 for width in block) for block in full.blocks)
    configuration = replace(full, blocks=blocks, hidden=(24, 18), grid=2)
    for head in ("fc", "dense", "pool"):
        hidden = () if head == "pool" else configuration.hidden
        network = build(replace(configuration, head=head, hidden=hidden))
        images = draw(configuration, 64, 96)[:2]
        assert measure_error(build_ncnn(network).run(images), build_pytorch(network).run(images)) < 1e-4, head


def test_images_of_all_sizes_share_nets():
    engine = build_ncnn(build(POOL))
    for side in range(32, 52):
        engine.run(draw(POOL, side, side + 1))
    assert len(engine._nets) == 2
    sliding = build_ncnn(build(KINDS["dense, no hidden layer"]))
    for side in range(64, 320, 16):
        sliding.run(draw(SMALL, side, 64)[:2])
    assert len(sliding._nets) <= 6


@pytest.mark.parametrize(
    ("processors", "alone", "together"), [(1, (1,), (2, 5)), (2, (1,), (2, 5)), (16, (1, 3), (4, 5))]
)
def test_a_few_images_have_all_processors(monkeypatch, processors, alone, together):
    monkeypatch.setattr("vggkit.engines.ncnn.count_threads", lambda: processors)
    network, images = build(SMALL), draw(SMALL, 64, 64)
    expected = build_pytorch(network).run(images)
    for counts, few in ((alone, True), (together, False)):
        engine = build_ncnn(network)
        for count in counts:
            assert measure_error(engine.run(images[:count]), expected[:count]) < 1e-4
            assert {each[1] for each in engine._nets} == {few}
    alone = [engine.run(images[:1]) for _ in range(2)]
    assert {each[1] for each in engine._nets} == {False, True}
    assert np.array_equal(*alone)


PROCESS = """
import os, sys
{torch}
import numpy as np
from vggkit.engines.model_weights import ModelFile
from vggkit.engines.ncnn import NCNNEngine

engine = NCNNEngine(ModelFile(sys.argv[1]))
images = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
first, alone = engine.run(images), engine.run(images[:1])
assert "torch" not in sys.modules or {imported}
if hasattr(os, "fork"):
    child = os.fork()
    if child == 0:
        new = NCNNEngine(ModelFile(sys.argv[1]))
        pairs = [(each.run(images), each.run(images[:1])) for each in (engine, new)]
        os._exit(0 if all(np.array_equal(*both) for each in pairs for both in zip(each, (first, alone))) else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert os.environ.get("OMP_WAIT_POLICY") == {policy!r}
np.save(sys.argv[2], first)
"""


@pytest.mark.parametrize("policy", [None, pytest.param("active", marks=pytest.mark.slow)])
def test_with_torch_and_without_nothing_is_printed_and_forks_compute(tmp_path, tiny, policy):
    import vggkit as vk

    vk.Classifier.create(tiny, labels=["a", "b", "c"], seed=1).save(tmp_path / "model.safetensors")
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    environment |= {} if policy is None else {"OMP_WAIT_POLICY": policy}
    found = []
    for torch, imported in (("", False), ("import torch; torch.ones(9, 9) @ torch.ones(9, 9)", True)):
        code = PROCESS.format(torch=torch, imported=imported, policy=policy)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "model.safetensors"), str(tmp_path / "rows.npy")],
            capture_output=True,
            text=True,
            timeout=120,
            env=environment,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        found.append(np.load(tmp_path / "rows.npy"))
    assert np.array_equal(*found)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are listed in /proc")
def test_it_has_threads_of_its_own_and_only_while_it_computes(tmp_path):
    """Also where torch was imported first, whose OpenMP the dynamic linker would take otherwise."""
    code = (
        "import os, time, torch, numpy as np\n"
        "from vggkit.engines import ncnn as module\n"
        "module.count_threads = lambda: 3\n"
        "import vggkit as vk\n"
        "engine = module.NCNNEngine(vk.VGG('vgg11', num_classes=2, head='pool', until='pool2'))\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "engine.run(np.zeros((1, 3, 64, 64), np.float32))\n"
        "engine.run(np.zeros((5, 3, 64, 64), np.float32))\n"
        "deadline = time.monotonic() + 60\n"
        "while len(os.listdir('/proc/self/task')) > before: assert time.monotonic() < deadline\n"
        "maps = {line.split()[-1] for line in open('/proc/self/maps') if 'libgomp' in line}\n"
        "print(sum('ncnn' in path for path in maps))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.stdout, done.stderr) == ("1\n", "")
