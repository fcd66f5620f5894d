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

from vggkit.errors import BadConfiguration, UnknownName
from vggkit.models import lessons
from vggkit.models.configuration import Configuration, layer_names, list_models
from vggkit.models.configure import configure
from vggkit.models.listing.listing import write_listing
from vggkit.models.vgg import VGG
from vggkit.weights.dialects import rename_keys

STYLES = ("sequential", "blocks", "explicit")
ROWS = [(model, style) for model in list_models() for style in ("blocks", "explicit")]
DIALECTS = {"sequential": "torchvision", "blocks": "blocks", "explicit": "explicit"}
TINY = Configuration(blocks=((4,), (4,), (4, 6), (6, 6), (6, 6)), hidden=(16, 12), num_classes=5, grid=2)

# What the sequential style writes; the other two write the rows of the table.
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


def narrow(configuration):
    """The configuration with the 24 numbers of `build(..., narrowed=True)` in place of the paper's 4096."""
    return replace(configuration, hidden=(24, 24))


def build(configuration, style, *, narrowed=False):
    """The class of the listing, in a namespace of its own."""
    source = write_listing(configuration, style)
    if narrowed:
        source = source.replace("4096", "24")
    namespace = {"__name__": "listing"}
    exec(compile(source, f"<{style} listing>", "exec", dont_inherit=True), namespace)
    (name,) = (node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    return namespace[name]


def rename(state, configuration, style):
    names = rename_keys(configuration, DIALECTS[style])
    return {names[key]: value for key, value in state.items()}


def unsettle(network):
    """Batch norm and biases that are no identity, and scores that differ."""
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if name.endswith(("bias", "running_mean")):
                values.normal_(std=0.1)
            elif name.endswith("running_var"):
                values.uniform_(0.5, 2)
            elif values.dim() == 2:
                values.normal_(std=values.shape[1] ** -0.5)


def make_images(configuration):
    """Their map is as high as the grid and a pixel wider, but for the paper's 7x7, which would take long."""
    side = configuration.minimum_side * (configuration.grid if configuration.grid < 7 else 1)
    return torch.randn(2, configuration.in_channels, side, side + configuration.minimum_side)


@torch.no_grad()
def check_twins(network, listed, style):
    """The listing has the same keys, and with the same weights the same logits, dropped numbers and statistics."""
    configuration = network.configuration
    unsettle(network)
    listed.load_state_dict(rename(network.state_dict(), configuration, style))
    images = make_images(configuration)
    smallest, grid = configuration.minimum_side, images.shape[2]
    for height, width in ((grid, grid), (smallest, grid), (smallest, None), (grid, None)):
        batch = images[..., :height, :width]
        logits = network.eval()(batch)
        assert torch.equal(listed.eval()(batch), logits)
    torch.manual_seed(2)
    expected = network.train()(images)
    torch.manual_seed(2)
    assert torch.equal(listed.train()(images), expected)
    assert_same_state(listed, rename(network.state_dict(), configuration, style))
    return logits


def assert_same_state(listed, expected):
    state = listed.state_dict()
    assert list(state) == list(expected)
    for name, values in state.items():
        assert torch.equal(values, expected[name]), name


@pytest.mark.parametrize("name", [name for name in SHOWN if name != "a long block"])
def test_a_seed_draws_the_same_weights_and_they_give_the_same_logits(name):
    torch.manual_seed(4)
    network = VGG(SHOWN[name])
    torch.manual_seed(4)
    listed = build(SHOWN[name], "sequential")()
    assert_same_state(listed, network.state_dict())
    assert check_twins(network, listed, "sequential").std() > 1e-4


@pytest.mark.sweep(3)
@pytest.mark.parametrize(
    ("model", "style"),
    [row if "11" in row[0] or row[0] == "vgg16_c" else pytest.param(*row, marks=pytest.mark.slow) for row in ROWS],
)
def test_the_same_of_the_table(model, style):
    configuration = configure(model, num_classes=5, in_channels=1, dropout=0.25)
    torch.manual_seed(4)
    network = VGG(narrow(configuration))
    torch.manual_seed(4)
    listed = build(configuration, style, narrowed=True)()
    assert_same_state(listed, rename(network.state_dict(), configuration, style))
    assert check_twins(network, listed, style).std() > 1e-4


@pytest.mark.parametrize("style", STYLES)
def test_channels_last(style):
    torch.manual_seed(3)
    network, listed = VGG(narrow(configure("vgg11_lrn"))), build(configure("vgg11_lrn"), style, narrowed=True)()
    unsettle(network)
    listed.load_state_dict(rename(network.state_dict(), network.configuration, style))
    images = make_images(network.configuration)
    last = torch.channels_last
    with torch.no_grad():
        expected = network.eval()(images)
        logits = listed.eval().to(memory_format=last)(images.to(memory_format=last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


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
@given(configurations())
def test_any_configuration_as_a_sequential(configuration):
    check_layout(write_listing(configuration, "sequential"))
    torch.manual_seed(1)
    check_twins(VGG(configuration), build(configuration, "sequential")(), "sequential")


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
    """A folder with listings of the table, and of SHOWN."""
    folder = tmp_path_factory.mktemp("listings")
    table = {f"{model} {style}": (configure(model), style) for model in list_models() for style in STYLES}
    table |= {
        f"{model} {style} of one channel": (configure(model, num_classes=2, in_channels=1, dropout=0.0), style)
        for model, style in ROWS
    }
    cuts = [configure("vgg19", until=layer) for layer in ("relu3_4", "fc6")]
    shown = {f"shown {number}": (value, "sequential") for number, value in enumerate([*SHOWN.values(), *cuts])}
    for name, (configuration, style) in (table | shown).items():
        listing = write_listing(configuration, style)
        check_layout(listing)
        (folder / f"{name.replace(' ', '_')}.py").write_text(listing, encoding="utf-8")
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
    assert len(list(printed.glob("*.py"))) == 74


@pytest.mark.parametrize("style", STYLES)
def test_the_lesson_is_what_the_generator_prints(style):
    lesson = Path(lessons.__path__[0]) / f"{style}.py"
    assert lesson.read_bytes() == write_listing(configure("vgg11"), style).encode()


@pytest.fixture(scope="module")
def vgg11():
    """A vgg11 of full size with its images and logits."""
    torch.manual_seed(5)
    network = VGG("vgg11").eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        return network.state_dict(), images, network(images)


@pytest.mark.sweep(2)
@pytest.mark.parametrize("style", STYLES)
def test_vgg11_at_full_size(vgg11, style):
    weights, images, expected = vgg11
    lesson = importlib.import_module(f"vggkit.models.lessons.{style}")
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
    network = build(configure("vgg11_bn"), style, narrowed=True)()
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    assert all(values.grad is not None for values in network.parameters())
    optimizer.step()


@pytest.mark.slow
def test_runs_as_a_script(tmp_path):
    script = tmp_path / "vgg.py"
    script.write_text(write_listing(configure("vgg19", until="relu3_4"), "sequential"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-I", script], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "logits (1, 1000), 2,838,568 parameters\n"


def test_needs_no_torch_to_be_written():
    code = (
        "import sys; from vggkit.models.listing.listing import write_listing; "
        "from vggkit.models.configure import configure; import vggkit.weights.dialects; "
        "write_listing(configure('vgg16'), 'explicit'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_says_what_it_is():
    cut = write_listing(configure("vgg19", until="relu3_4"), "sequential")
    assert "Configuration E (table 1) of Simonyan and Zisserman" in cut
    assert "cut after relu3_4" in " ".join(cut.split())
    assert "9 layers with weights: 8 convolutions, 1 fully connected." in " ".join(cut.split())
    own = write_listing(TINY, "sequential")
    assert "class VGG(nn.Module)" in own
    assert "A network after Simonyan and Zisserman" in own
    assert "arXiv 1409.1556" in own
    assert "Configuration A-LRN" in write_listing(configure("vgg11_lrn"), "explicit")


def test_another_style_is_refused():
    with pytest.raises(UnknownName, match="'blocks'"):
        write_listing(TINY, "block")


@pytest.mark.parametrize("style", ["blocks", "explicit"])
@pytest.mark.parametrize(
    ("configuration", "named"),
    [
        (configure("vgg16", until="relu3_3"), "until='relu3_3'"),
        (configure("vgg16", until="fc6"), r"hidden=\(4096,\)"),
        (configure("vgg16", head="dense"), "head='dense'"),
        (configure("vgg16", head="pool"), "head='pool'"),
        (replace(configure("vgg16"), grid=3), "grid=3"),
        (replace(configure("vgg16"), pooling="average"), "pooling='average'"),
        (replace(configure("vgg16"), ranks=(9, None, None)), r"ranks=\(9, None, None\)"),
        (replace(configure("vgg16_c"), batch_norm=True), "custom blocks"),
        (TINY, "custom blocks"),
    ],
    ids=[
        "cut",
        "cut head",
        "dense",
        "pool",
        "grid",
        "average",
        "low rank",
        "c with batch norm",
        "blocks of its own",
    ],
)
def test_what_only_the_sequential_style_writes(configuration, named, style):
    with pytest.raises(BadConfiguration, match=f"style '{style}' .*{named}.* 'sequential' writes every network"):
        write_listing(configuration, style)
    assert "class VGG" in write_listing(configuration, "sequential")
