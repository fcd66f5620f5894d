from dataclasses import replace

import pytest

from vggkit.errors import UnknownName
from vggkit.networks.configurations import configure, list_models
from vggkit.networks.dialects import rename_keys


def test_torchvision_is_canonical():
    for model in list_models():
        configuration = configure(model)
        assert rename_keys(configuration, "torchvision") == {key: key for key in configuration.state_shapes()}


def test_vgg11_in_explicit_layers():
    renamed = rename_keys(configure("vgg11"), "explicit")
    names = [f"conv{place}" for place in ("1_1", "2_1", "3_1", "3_2", "4_1", "4_2", "5_1", "5_2")]
    names += ["fc1", "fc2", "fc3"]
    assert list(renamed.values()) == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    assert renamed["features.8.weight"] == "conv3_2.weight"
    assert renamed["classifier.3.bias"] == "fc2.bias"


def test_vgg13_bn_in_blocks():
    renamed = rename_keys(configure("vgg13_bn"), "blocks")
    assert renamed["features.0.weight"] == "features.0.conv1.weight"
    assert renamed["features.1.running_mean"] == "features.0.bn1.running_mean"
    assert renamed["features.3.weight"] == "features.0.conv2.weight"
    assert renamed["features.7.weight"] == "features.2.conv1.weight"
    assert renamed["features.32.num_batches_tracked"] == "features.8.bn2.num_batches_tracked"
    assert renamed["classifier.6.weight"] == "classifier.6.weight"


def test_low_rank_factors_keep_their_places():
    configuration = replace(configure("vgg11"), ranks=(64, None, 8))
    explicit = rename_keys(configuration, "explicit")
    assert explicit["classifier.0.0.weight"] == "fc1.0.weight"
    assert explicit["classifier.6.1.bias"] == "fc3.1.bias"
    assert rename_keys(configuration, "blocks")["classifier.0.1.weight"] == "classifier.0.1.weight"


@pytest.mark.parametrize("dialect", ["torchvision", "blocks", "explicit"])
@pytest.mark.parametrize("model", list_models())
def test_every_key_has_one_name(model, dialect):
    for configuration in (configure(model), configure(model, until="conv3_2"), configure(model, head="dense")):
        renamed = rename_keys(configuration, dialect)
        assert list(renamed) == list(configuration.state_shapes())
        assert len(set(renamed.values())) == len(renamed)


def test_another_dialect_is_refused():
    with pytest.raises(UnknownName, match="'explicit'"):
        rename_keys(configure("vgg11"), "explicitly")
