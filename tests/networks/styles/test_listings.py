"""Every listing is the network it says it is, and looks as a formatter would have it."""

import ast
import importlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vggkit.errors import UnknownName
from vggkit.networks import styles
from vggkit.networks.configurations import Configuration, configure, layer_names, list_models
from vggkit.networks.dialects import rename_keys
from vggkit.networks.styles.listings import write_listing
from vggkit.networks.vgg import VGG

STYLES = ("sequential", "blocks", "explicit")
DIALECTS = {"sequential": "torchvision", "blocks": "blocks", "explicit": "explicit"}
TINY = Configuration(blocks=((4,), (4,), (4, 6), (6, 6), (6, 6)), hidden=(16, 12), num_classes=5, grid=2)

SHOWN = {
    "plain": TINY,
    "batch norm": replace(TINY, batch_norm=True),
    "1x1 windows": replace(TINY, kernels=((3,), (3,), (3, 1), (3, 1), (3, 1))),
    "5x5 windows alone": replace(TINY, kernels=((5,), (5,), (5, 5), (5, 5), (5, 5))),
    "5x5, 3x3 and 1x1": replace(TINY, kernels=((5,), (3,), (3, 1), (3, 3), (3, 3)), batch_norm=True),
    "lrn": replace(TINY, lrn_after=("relu1_1", "relu3_2", "relu4_1", "relu4_2")),
    "average": replace(TINY, pooling="average"),
    "dense": replace(TINY, head="dense"),
    "dense, 1x1 grid": replace(TINY, head="dense", grid=1),
    "dense, low rank": replace(TINY, head="dense", ranks=(3, None, 2)),
    "low rank": replace(TINY, ranks=(3, 4, None)),
    "pool": replace(TINY, head="pool", hidden=(), dropout=0.0),
    "pool, hidden": replace(TINY, head="pool", statistics="mean+std", hidden=(8, 7), dropout=0.25),
    "cut at conv": configure(replace(TINY, batch_norm=True, lrn_after=("relu3_1",)), until="conv3_2"),
    "cut at bn": configure(replace(TINY, batch_norm=True, lrn_after=("relu3_1",)), until="bn3_1"),
    "cut at relu before lrn": configure(replace(TINY, lrn_after=("relu3_1", "relu3_2")), until="relu3_2"),
    "cut at lrn": configure(replace(TINY, lrn_after=("relu3_1",)), until="lrn3_1"),
    "cut at the first layer": configure(TINY, until="conv1_1"),
    "cut at pool": configure(TINY, until="pool2"),
    "no hidden layers, one channel": replace(TINY, hidden=(), in_channels=1, grid=1, dropout=0),
    "nine blocks": replace(TINY, blocks=((2,),) * 9, grid=1),
    "a long block": replace(TINY, blocks=((1000,) * 2, tuple(range(1001, 1020))), grid=1),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small wait for a second thread longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(configuration, style):
    """The class of the listing, in a namespace of its own."""
    source = write_listing(configuration, style)
    namespace = {"__name__": "listing"}
    exec(compile(source, f"<{style} listing>", "exec", dont_inherit=True), namespace)
    (name,) = (node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return namespace[name]


def rename(state, configuration, style):
    names = rename_keys(configuration, DIALECTS[style])
    return {names[key]: value for key, value in state.items()}


def twins(configuration, style):
    """The network, and the listing's with its weights; batch norm and biases are no identity."""
    network = VGG(configuration)
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                values.normal_(std=0.1)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 2)
            elif values.dim() == 2:
                values.normal_(std=values.shape[1] ** -0.5)
    listed = build(configuration, style)()
    listed.load_state_dict(rename(network.state_dict(), configuration, style))
    return network, listed


def pictures(configuration):
    """Their map is as high as the grid, and a pixel wider."""
    side = configuration.minimum_side * configuration.grid
    return torch.randn(2, configuration.in_channels, side, side + configuration.minimum_side)


@torch.no_grad()
def check_twins(configuration, style):
    torch.manual_seed(1)
    network, listed = twins(configuration, style)
    images = pictures(configuration)
    smallest, grid = configuration.minimum_side, images.shape[2]
    for height, width in ((grid, grid), (smallest, grid), (smallest, None), (grid, None)):
        batch = images[..., :height, :width]
        logits = network.eval()(batch)
        assert torch.equal(listed.eval()(batch), logits)
    torch.manual_seed(2)
    expected = network.train()(images)
    torch.manual_seed(2)
    assert torch.equal(listed.train()(images), expected)  # the same numbers dropped, the same statistics
    assert_same_state(listed, rename(network.state_dict(), configuration, style))
    return logits


def assert_same_state(listed, expected):
    state = listed.state_dict()
    assert list(state) == list(expected)
    for name, values in state.items():
        assert torch.equal(values, expected[name]), name


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", [name for name in SHOWN if name != "a long block"])
def test_logits_are_the_networks_bit_for_bit(name, style):
    assert check_twins(SHOWN[name], style).std() > 1e-4


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["plain", "lrn", "dense, low rank", "pool, hidden", "cut at conv"])
def test_channels_last(name, style):
    torch.manual_seed(3)
    network, listed = twins(SHOWN[name], style)
    images = pictures(SHOWN[name])
    last = torch.channels_last
    with torch.no_grad():
        expected = network.eval()(images)
        logits = listed.eval().to(memory_format=last)(images.to(memory_format=last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", ["plain", "batch norm", "dense, low rank", "pool, hidden", "cut at bn"])
def test_the_same_seed_draws_the_same_weights(name, style):
    configuration = SHOWN[name]
    torch.manual_seed(4)
    network = VGG(configuration)
    torch.manual_seed(4)
    listed = build(configuration, style)()
    assert_same_state(listed, rename(network.state_dict(), configuration, style))


@st.composite
def configurations(draw):
    """Any small configuration."""
    width = st.integers(1, 6)
    blocks = draw(st.lists(st.lists(width, min_size=1, max_size=3), min_size=1, max_size=3))
    kernels = draw(st.none() | st.just([[draw(st.sampled_from([1, 3, 5])) for _ in block] for block in blocks]))
    whole = Configuration(blocks=blocks, kernels=kernels, batch_norm=draw(st.booleans()))
    relus = [name for name in layer_names(replace(whole, head="pool")) if name.startswith("relu")]
    whole = replace(whole, lrn_after=tuple(relu for relu in relus if draw(st.integers(0, 3)) == 0))
    head = draw(st.sampled_from(["fc", "dense", "pool"]))
    hidden = tuple(draw(st.lists(st.integers(1, 9), max_size=3)))
    ranks = draw(st.none() | st.tuples(*[st.none() | st.integers(1, 4)] * (len(hidden) + 1)))
    names = layer_names(replace(whole, head="pool"))
    return replace(
        whole,
        pooling=draw(st.sampled_from(["max", "average"])),
        until=draw(st.none() | st.sampled_from(names)) if head == "pool" else None,
        head=head,
        grid=draw(st.integers(1, 4)),
        statistics=draw(st.sampled_from(["mean", "mean+std"])),
        hidden=hidden,
        ranks=ranks,
        dropout=draw(st.sampled_from([0, 0.0, 0.1, 0.5, 1e-05])),
        num_classes=draw(st.integers(1, 5)),
        in_channels=draw(st.integers(1, 4)),
    )


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(configurations(), st.sampled_from(STYLES))
def test_any_configuration(configuration, style):
    check_layout(write_listing(configuration, style))
    check_twins(configuration, style)


def check_layout(listing):
    assert listing.isascii()
    assert listing.endswith('parameters")\n')
    assert max(map(len, listing.splitlines())) <= 88
    assert not any(line != line.rstrip() for line in listing.splitlines())
    imported = {
        alias.name.split(".")[0] if isinstance(node, ast.Import) else node.module
        for node in ast.walk(ast.parse(listing))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {"torch"}


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """A folder with every listing of the table and of SHOWN."""
    folder = tmp_path_factory.mktemp("listings")
    shown = {name: configure(name) for name in list_models()} | SHOWN
    shown["vgg19 cut"] = configure("vgg19", until="relu3_4")
    for number, configuration in enumerate(shown.values()):
        for style in STYLES:
            listing = write_listing(configuration, style)
            check_layout(listing)
            (folder / f"listing_{number}_{style}.py").write_text(listing, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("check",),
        ("check", "--select=E,F,W,I,B,UP,RET,SIM"),
        ("format", "--diff"),
        ("format", "--diff", "--line-length=116"),
    ],
    ids=" ".join,
)
def test_ruff_has_nothing_to_say(printed, arguments):
    ruff = Path(sys.executable).with_name("ruff")
    ruff = ruff if ruff.exists() else shutil.which("ruff")
    if ruff is None:
        pytest.skip("ruff is not installed")
    done = subprocess.run([ruff, *arguments, "--isolated", printed], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(printed.glob("*.py"))) > 90


@pytest.mark.parametrize("style", STYLES)
def test_the_lesson_is_what_the_generator_prints(style):
    lesson = Path(styles.__path__[0]) / f"{style}.py"
    assert lesson.read_bytes() == write_listing(configure("vgg11"), style).encode()


@pytest.fixture(scope="module")
def vgg11():
    """A vgg11 of full size with its pictures and logits."""
    torch.manual_seed(5)
    network = VGG("vgg11").eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        return network.state_dict(), images, network(images)


@pytest.mark.parametrize("style", STYLES)
def test_vgg11_at_full_size(vgg11, style):
    weights, images, expected = vgg11
    lesson = importlib.import_module(f"vggkit.networks.styles.{style}")
    with torch.device("meta"):  # its own first weights are not wanted
        listed = lesson.VGG11().eval()
    listed.load_state_dict(rename(weights, configure("vgg11"), style), assign=True)
    with torch.inference_mode():
        logits = listed(images)
    assert logits.shape == (1, 1000)
    assert torch.equal(logits, expected)
    assert sum(values.numel() for values in listed.parameters()) == 132_863_336


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("model", list_models())
def test_parameters_and_classes_of_the_table(model, style):
    configuration = configure(model)
    network = build(configuration, style)
    assert network.__name__ == model.replace("_", "").upper()
    with torch.device("meta"):
        assert sum(values.numel() for values in network().parameters()) == configuration.parameters
        logits = network(num_classes=7)(torch.empty(2, 3, 224, 224))
    assert logits.shape == (2, 7)
    assert f"{configuration.parameters:,} parameters" in " ".join(write_listing(configuration, style).split())


@pytest.mark.parametrize("style", STYLES)
def test_one_step_of_training(style):
    torch.manual_seed(6)
    network = build(replace(TINY, batch_norm=True), style)()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    assert all(values.grad is not None for values in network.parameters())
    optimizer.step()


def test_runs_as_a_script(tmp_path):
    script = tmp_path / "vgg.py"
    script.write_text(write_listing(configure("vgg19", until="relu3_4"), "blocks"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-I", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "logits (1, 1000), 2,838,568 parameters\n"


def test_needs_no_torch_to_be_written():
    code = (
        "import sys; from vggkit.networks.styles.listings import write_listing; "
        "from vggkit.networks.configurations import configure; import vggkit.networks.dialects; "
        "write_listing(configure('vgg16'), 'explicit'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_says_what_it_is():
    cut = write_listing(configure("vgg19", until="relu3_4"), "sequential")
    assert "Configuration E (table 1) of Simonyan and Zisserman" in cut
    assert "cut after relu3_4" in " ".join(cut.split())
    assert "9 layers with weights: 8 convolutions, 1 fully connected." in " ".join(cut.split())
    assert "class VGG(nn.Module)" in write_listing(TINY, "blocks")
    assert "A network after Simonyan and Zisserman" in write_listing(TINY, "blocks")
    assert "arXiv 1409.1556" in write_listing(TINY, "blocks")
    assert "Configuration A-LRN" in write_listing(configure("vgg11_lrn"), "explicit")


def test_another_style_is_refused():
    with pytest.raises(UnknownName, match="'blocks'"):
        write_listing(TINY, "block")
