"""A configuration is a value: it refuses what cannot be built, travels as JSON, and knows its network's shapes."""

import json
import math
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vggkit.errors import BadConfiguration, UnknownName, VggkitError
from vggkit.models.configuration import (
    MODELS,
    PAPER_LETTERS,
    Configuration,
    find_configuration,
    layer_names,
    list_models,
)
from vggkit.models.configure import configure, parse_blocks
from vggkit.models.vgg import VGG

TINY = Configuration(blocks=((4,), (4, 6)), hidden=(8,), grid=2, num_classes=3)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    """Small networks of every kind."""
    width = st.integers(1, 6)
    blocks = draw(st.lists(st.lists(width, min_size=1, max_size=3), min_size=1, max_size=3))
    kernels = draw(st.none() | st.just([[draw(st.sampled_from((1, 3, 5))) for _ in block] for block in blocks]))
    hidden = draw(st.lists(width, max_size=2))
    ranks = draw(st.none() | st.lists(st.none() | width, min_size=len(hidden) + 1, max_size=len(hidden) + 1))
    relus = [f"relu{b}_{p}" for b, block in enumerate(blocks, 1) for p in range(1, len(block) + 1)]
    head = draw(st.sampled_from(("fc", "dense", "pool")))
    whole = Configuration(
        blocks=blocks,
        kernels=kernels,
        batch_norm=draw(st.booleans()),
        lrn_after=draw(st.lists(st.sampled_from(relus), unique=True, max_size=2)),
        pooling=draw(st.sampled_from(("max", "average"))),
        head=head,
        grid=draw(st.integers(1, 3)),
        statistics=draw(st.sampled_from(("mean", "mean+std"))),
        hidden=hidden,
        ranks=ranks,
        dropout=draw(st.floats(0, 0.9)),
        num_classes=draw(width),
        in_channels=draw(width),
    )
    if head != "pool":
        return whole
    return replace(whole, until=draw(st.none() | st.sampled_from([layer.name for layer in whole.trunk])))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 600)
    | st.floats()
    | st.sampled_from(("fc", "pool", "mean+std", "relu1_1", "pool2", "vgg11", "", "3")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


class TestTable:
    def test_names_in_the_papers_order(self) -> None:
        assert " ".join(list_models()) == (
            "vgg11 vgg11_lrn vgg11_bn vgg13 vgg13_bn vgg16_c vgg16 vgg16_bn vgg19 vgg19_bn"
        )
        assert list(PAPER_LETTERS.values()) == ["A", "A-LRN", "B", "C", "D", "E"]

    @pytest.mark.parametrize("name", MODELS)
    def test_every_row_knows_its_name(self, name: str) -> None:
        row = find_configuration(name)
        assert row.model == name
        assert configure(name, num_classes=5, in_channels=1, head="pool", until="relu3_1").model == name
        assert replace(row, blocks=((1,), *row.blocks[1:]), lrn_after=(), kernels=None).model == "custom"

    def test_an_unknown_name_gets_the_nearest(self) -> None:
        with pytest.raises(UnknownName, match="Did you mean 'vgg16_bn'"):
            find_configuration("vgg16-bn")
        with pytest.raises(UnknownName, match="vgg11"):
            configure("resnet50")


class TestTrunk:
    def test_names_indices_and_widths_of_a_trunk(self) -> None:
        configuration = replace(TINY, batch_norm=True, lrn_after=("relu1_1",), kernels=((3,), (3, 1)))
        rows = [(e.name, e.kind, e.index, e.in_channels, e.out_channels, e.kernel) for e in configuration.trunk]
        assert rows == [
            ("conv1_1", "conv", 0, 3, 4, 3),
            ("bn1_1", "bn", 1, 4, 4, 1),
            ("relu1_1", "relu", 2, 4, 4, 1),
            ("lrn1_1", "lrn", 3, 4, 4, 1),
            ("pool1", "pool", 4, 4, 4, 2),
            ("conv2_1", "conv", 5, 4, 4, 3),
            ("bn2_1", "bn", 6, 4, 4, 1),
            ("relu2_1", "relu", 7, 4, 4, 1),
            ("conv2_2", "conv", 8, 4, 6, 1),
            ("bn2_2", "bn", 9, 6, 6, 1),
            ("relu2_2", "relu", 10, 6, 6, 1),
            ("pool2", "pool", 11, 6, 6, 2),
        ]

    @pytest.mark.parametrize("name", [layer.name for layer in MODELS["vgg16_bn"].trunk])
    def test_a_cut_keeps_the_layers_up_to_it(self, name: str) -> None:
        whole, cut = MODELS["vgg16_bn"].trunk, configure("vgg16_bn", until=name).trunk
        assert cut == whole[: len(cut)]
        assert cut[-1].name == name

    def test_the_smallest_image_doubles_with_each_pool(self) -> None:
        cuts = ["relu1_2", "pool1", "relu2_1", "pool2", "relu4_3", "pool5"]
        assert [configure("vgg16", until=cut).minimum_side for cut in cuts] == [1, 2, 2, 4, 8, 32]

    def test_layer_names_hold_what_until_takes(self) -> None:
        names = layer_names(TINY)
        assert names[:3] == ["conv1_1", "relu1_1", "pool1"]
        assert names[-2:] == ["fc6", "relu6"]
        for name in names:
            configure(TINY, until=name)
        assert layer_names(configure(TINY, head="pool"))[-1] == "pool2"


class TestConfigure:
    def test_nothing_asked_changes_nothing(self) -> None:
        assert configure("vgg19_bn") == MODELS["vgg19_bn"]
        assert configure(TINY) == TINY

    def test_each_option_arrives(self) -> None:
        changed = configure("vgg13", num_classes=7, in_channels=5, head="dense", dropout=0.25)
        assert (changed.num_classes, changed.in_channels, changed.head, changed.dropout) == (7, 5, "dense", 0.25)
        assert changed.hidden == (4096, 4096)

    def test_a_pool_head_drops_the_hidden_layers_and_the_dropout_unless_asked(self) -> None:
        pool = configure(replace(TINY, ranks=(2, 1)), head="pool")
        assert (pool.hidden, pool.ranks, pool.dropout, pool.statistics) == ((), None, 0.0, "mean")
        assert configure("vgg11", head="pool", dropout=0.3).dropout == 0.3

    def test_a_cut_takes_the_pool_head_with_the_statistics_that_fit_it(self) -> None:
        early, late = configure("vgg19", until="relu3_4"), configure("vgg19", until="pool5")
        assert (early.head, early.statistics, early.head_features) == ("pool", "mean+std", 512)
        assert (late.head, late.statistics, late.until, late.head_features) == ("pool", "mean", None, 512)

    @pytest.mark.parametrize(
        ("until", "hidden"), [("fc6", (4096,)), ("relu7", (4096, 4096)), ("fc7", (4096, 4096))]
    )
    def test_a_cut_in_the_head_keeps_the_papers_head_up_to_there(self, until: str, hidden: tuple[int, ...]) -> None:
        cut = configure("vgg16", until=until, num_classes=2)
        assert (cut.head, cut.hidden, cut.until) == ("fc", hidden, None)
        assert [fc.out_features for fc in cut.fully_connected] == [*hidden, 2]

    def test_a_cut_in_the_head_keeps_the_ranks_of_what_stays(self) -> None:
        assert configure(replace(TINY, hidden=(8, 8), ranks=(2, 3, 1)), until="fc6").ranks == (2, None)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"until": "relu3_4", "head": "fc"}, "takes head='pool'"),
            ({"until": "fc6", "head": "pool"}, "has none"),
            ({"until": "fc8"}, "fc7"),
            ({"until": "relu3_9"}, "relu3_1"),
            ({"until": 5}, "until"),
            ({"head": "pol"}, "head must be one of"),
            ({"num_classes": 0}, "num_classes"),
            ({"in_channels": 2.5}, "in_channels"),
            ({"dropout": 1.0}, "dropout"),
        ],
    )
    def test_contradictions_are_named(self, options: dict[str, object], said: str) -> None:
        with pytest.raises((BadConfiguration, UnknownName), match=said):
            configure("vgg16", **options)

    def test_a_pool_head_cannot_become_the_papers(self) -> None:
        with pytest.raises(BadConfiguration, match="start from a model's name, such as 'vgg11'"):
            configure(configure("vgg11", head="pool"), head="fc")

    def test_a_model_is_a_name_or_a_configuration(self) -> None:
        with pytest.raises(BadConfiguration, match="int"):
            configure(11)  # type: ignore[arg-type]


class TestEquality:
    def test_lists_are_tuples(self) -> None:
        listed = Configuration(blocks=[[4], [4, 6]], hidden=[8], grid=2, num_classes=3)  # type: ignore[arg-type]
        assert listed == TINY
        assert hash(listed) == hash(TINY)

    def test_what_is_said_in_two_ways_is_equal(self) -> None:
        assert replace(TINY, kernels=((3,), (3, 3))) == TINY
        assert replace(TINY, ranks=(None, None)) == TINY
        assert replace(TINY, until="pool2") == TINY


class TestRefusals:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            *(
                ("blocks", v)
                for v in ((), ((),), ((4,), ()), 4, "44", None, ((0,),), ((-1,),), ((2.0,),), ((True,),), {})
            ),
            *(
                ("kernels", v)
                for v in ((), ((3,),), ((2,), (3, 3)), ((3,), (3,)), ((3.0,), (3, 3)), 3, "abc", (1, 2))
            ),
            *(("kernels", v) for v in (True, ((), ()), {}, ((3,), (3, "3")), ((3,), (3, 0)))),
            *(("batch_norm", v) for v in (1, 0, "yes", None)),
            *(
                ("lrn_after", v)
                for v in ("relu1_1", None, 5, ("conv1_1",), ("relu9_9",), (1,), (("relu1_1",),), {})
            ),
            *(("pooling", v) for v in ("min", None, ("max",), 1)),
            *(("until", v) for v in ("relu9_1", "fc6", "", 5, 1.5, True, ("relu1_1",), {"a": 1})),
            *(("head", v) for v in ("FC", None, 1, ())),
            *(("grid", v) for v in (0, -1, 7.0, "7", None, True)),
            *(("statistics", v) for v in ("std", None, ("mean", "std"))),
            *(("hidden", v) for v in (8, None, (0,), ("8",), (8.0,), ((8,),), (True,), "8")),
            *(("ranks", v) for v in (5, "x", (), {}, (1,), (1, 2, 3), (0, None), (1.0, None), ("1", None), True)),
            *(("dropout", v) for v in (1, 1.0, -0.1, "0.5", None, math.nan, math.inf, True, (0.5,))),
            *(("num_classes", v) for v in (0, -3, 2.0, "10", None, True, (1,))),
            *(("in_channels", v) for v in (0, 3.0, None, "3", False)),
        ],
    )
    def test_a_bad_value_is_refused_by_the_name_of_its_field(self, field: str, value: object) -> None:
        values = replace(TINY, head="pool").to_dict() | {field: value}
        with pytest.raises(BadConfiguration, match=rf"\b{field}\b"):
            Configuration.from_dict(values)

    def test_a_cut_trunk_takes_no_other_head(self) -> None:
        with pytest.raises(BadConfiguration, match="head must be 'pool' where the trunk is cut"):
            replace(TINY, until="relu1_1")

    @pytest.mark.parametrize("values", [None, 3, "vgg11", [("blocks", [[4]])]])
    def test_only_a_mapping_is_read(self, values: object) -> None:
        with pytest.raises(BadConfiguration, match="mapping"):
            Configuration.from_dict(values)  # type: ignore[arg-type]

    def test_an_unknown_field_gets_the_nearest(self) -> None:
        with pytest.raises(BadConfiguration, match="Did you mean 'num_classes'"):
            Configuration.from_dict({"blocks": [[4]], "num_class": 3})
        with pytest.raises(BadConfiguration, match="field"):
            Configuration.from_dict({"blocks": [[4]], 3: 3})  # type: ignore[dict-item]

    def test_blocks_are_needed(self) -> None:
        with pytest.raises(BadConfiguration, match="needs `blocks`"):
            Configuration.from_dict({"num_classes": 3})

    @settings(max_examples=200, deadline=None)
    @given(
        st.dictionaries(
            st.sampled_from([field.name for field in fields(Configuration)]), json_values, min_size=1, max_size=4
        )
    )
    def test_garbage_raises_nothing_else(self, garbage: dict[str, object]) -> None:
        try:
            read = Configuration.from_dict(TINY.to_dict() | garbage)
        except VggkitError:
            return
        # What was taken is as good as any other.
        assert Configuration.from_dict(json.loads(json.dumps(read.to_dict()))) == read
        assert read.parameters > 0


class TestJson:
    @settings(max_examples=150, deadline=None)
    @given(configurations())
    def test_there_and_back(self, configuration: Configuration) -> None:
        text = json.dumps(configuration.to_dict(), allow_nan=False)
        assert Configuration.from_dict(json.loads(text)) == configuration

    def test_every_field_is_written(self) -> None:
        assert list(TINY.to_dict()) == [field.name for field in fields(Configuration)]
        assert TINY.to_dict()["blocks"] == [[4], [4, 6]]


class TestShapes:
    @settings(max_examples=60, deadline=None)
    @given(configurations())
    def test_state_shapes_are_the_networks(self, configuration: Configuration) -> None:
        with torch.device("meta"):
            network = VGG(configuration)
        real = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        assert list(configuration.state_shapes().items()) == list(real.items())
        assert configuration.parameters == sum(value.numel() for value in network.parameters())

    def test_keys_of_two_factors(self) -> None:
        shapes = replace(TINY, ranks=(2, None)).state_shapes()
        head = {key: shape for key, shape in shapes.items() if key.startswith("classifier")}
        assert head == {
            "classifier.0.0.weight": (2, 24),
            "classifier.0.1.weight": (8, 2),
            "classifier.0.1.bias": (8,),
            "classifier.3.weight": (3, 8),
            "classifier.3.bias": (3,),
        }

    def test_dense_and_fc_have_the_same_shapes(self) -> None:
        assert replace(TINY, head="dense").state_shapes() == TINY.state_shapes()


def test_blocks_are_read_from_text() -> None:
    assert parse_blocks("64,64/128,128/256,256") == ((64, 64), (128, 128), (256, 256))
    assert parse_blocks(" 8 / 16, 16 ") == ((8,), (16, 16))


@pytest.mark.parametrize(
    "text", ["", "64,", "64//128", "/64", "0/64", "-64", "64.0", "64;128", "a/b", "٦٤", "9999999"]
)
def test_other_text_is_refused_with_the_rule_and_an_example(text: str) -> None:
    with pytest.raises(
        BadConfiguration, match=r"commas .* slashes .*, such as 64,64/128,128/256,256; got"
    ) as problem:
        parse_blocks(text)
    assert repr(text) in str(problem.value)


def test_blocks_take_the_place_of_a_models() -> None:
    made = configure("vgg16_bn", blocks="8,8/16", num_classes=5)
    assert made.blocks == ((8, 8), (16,))
    assert made.batch_norm
    assert made.model == "custom"
    assert configure("vgg16_c", blocks=((8,),)).kernels is None
    assert configure("vgg11", blocks=MODELS["vgg13"].blocks) == MODELS["vgg13"]
    with pytest.raises(BadConfiguration, match="blocks must be"):
        configure("vgg11", blocks=((0,),))
