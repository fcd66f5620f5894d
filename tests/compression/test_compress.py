"""`vggkit.compress`: a Classifier again, measured, or a refusal that leaves nothing."""

import json
from pathlib import Path

import numpy as np
import pytest

import vggkit as vk
from vggkit.cli.main import main
from vggkit.compression import search
from vggkit.errors import BadConfiguration, BadData, BadInput
from vggkit.workflows.compress import read_size


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vggkit.compression.measuring.TURN_SECONDS", 0.002)
    monkeypatch.setattr("vggkit.compression.measuring.ROUNDS", 2)


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stop:
        main([str(each) for each in arguments])
    return int(stop.value.code or 0)


@pytest.mark.slow
def test_named_steps_give_a_classifier_whose_file_reloads(trained, photos, tmp_path, capsys):
    out = tmp_path / "small.safetensors"
    steps = ("--prune", 0.4, "--ranks", 6, "--storage", "int4", "--epochs", 2)
    assert call("compress", trained, photos, "--out", out, *steps, "--quiet", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    before, after = vk.load(trained), vk.load(out)
    assert after.labels == before.labels
    assert after.configuration.ranks == (6, 6, None)
    assert after.configuration.grid == 4
    assert sum(map(sum, after.configuration.blocks)) < sum(map(sum, before.configuration.blocks))
    assert after.card.storage == "int4"
    assert out.stat().st_size == found["chosen"]["size_bytes"] < found["before"]["size_bytes"] / 4
    assert [step["step"] for step in found["chosen"]["steps"]] == ["Fold", "Prune", "LowRank", "FineTune"]
    assert 0.4 <= found["chosen"]["steps"][1]["removed"] < 0.6
    # Each image has one role.
    assert [(role["purpose"], role["split"]) for role in found["roles"]] == [
        ("fit", "train"),
        ("choose", "half of val"),
        ("report", "the other half of val"),
    ]
    low, high = found["comparison"]["interval"]
    assert low <= found["comparison"]["difference"] <= high
    assert found["comparison"]["n"] == found["roles"][2]["images"]
    assert after.provenance["compression"]["comparison"]["n"] == found["comparison"]["n"]
    assert after.evaluate(photos, split="val").top1 > 0.6
    # Every engine gives the same from the file.
    image = np.asarray(vk.open_dataset(str(photos)).split("val")[0].decode())
    first = after.predict(image)[0].probabilities
    for engine in ("pytorch", "openvino"):
        assert np.allclose(vk.predict(out, image, engine=engine)[0].probabilities, first, atol=1e-4)


@pytest.mark.slow
def test_a_goal_finds_a_combination_and_shows_what_was_measured(trained, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "ENERGIES", (0.9,))
    monkeypatch.setattr(search, "REMOVED", (0.4, 0.7))
    result = vk.compress(trained, photos, max_size="40KB", epochs=1, quiet=True, out=tmp_path / "small.safetensors")
    record = result.record
    assert (tmp_path / "small.safetensors").stat().st_size == record.chosen.size_bytes <= 40_000
    assert record.points[0] == record.before
    assert len(record.points) > 4
    reached = [point for point in record.points if point.size_bytes <= 40_000 - 8192]
    assert record.chosen.top1 == max(point.top1 for point in reached)
    assert isinstance(result.classifier, vk.Classifier)
    assert len({image.digest for image in record.roles}) == 3


@pytest.mark.slow
def test_a_pool_head_takes_the_place_of_the_fully_connected_layers(trained, photos, tmp_path):
    before = vk.load(trained)
    small = before.compress(photos, head="pool", epochs=1, storage="int8", quiet=True)
    assert small.configuration.head == "pool"
    assert small.configuration.hidden == ()
    assert small.configuration.parameters < before.configuration.parameters / 2
    assert [step["step"] for step in small.provenance["compression"]["chosen"]["steps"]] == ["PoolHead", "FineTune"]
    assert small.activation_ranges.keys() == {"images", "pool1", "relu2_1", "pool2"}
    with pytest.raises(BadConfiguration, match="has a pool head already"):
        small.compress(photos, head="pool", quiet=True)


@pytest.mark.slow
def test_without_a_goal_the_smallest_within_half_a_point_is_searched(trained, photos, monkeypatch):
    monkeypatch.setattr(search, "ENERGIES", ())
    monkeypatch.setattr(search, "REMOVED", (0.3,))
    record = vk.compress(trained, photos, epochs=1, quiet=True).record
    assert record.goals.max_loss == 0.005
    assert any("pool head" in point.name for point in record.points)
    within = [point for point in record.points[1:] if point.top1 >= record.before.top1 - 0.005]
    assert record.chosen.name == min(within, key=lambda point: point.size_bytes).name


def test_without_data_the_weights_are_stored_in_fewer_bits(made, tmp_path, capsys):
    out = tmp_path / "small.safetensors"
    assert call("compress", made, "--out", out, "--quiet") == 0
    shown = capsys.readouterr()
    assert "fc6 folded, int8" in shown.out
    assert "accuracy" not in shown.out
    assert vk.load(out).card.storage == "int8"
    small = vk.load(made).compress(energy=0.5, storage="fp16", quiet=True)
    assert max(small.configuration.ranks[:2]) < 20
    small.save(tmp_path / "again.safetensors")
    assert vk.load(tmp_path / "again.safetensors").configuration == small.configuration


def test_the_classifier_itself_is_not_changed(made):
    classifier = vk.load(made)
    before = {key: value.clone() for key, value in classifier.network.state_dict().items()}
    card, mode = classifier.card, classifier.network.training
    small = classifier.compress(ranks=4, storage="int4", quiet=True)
    assert all((value == before[key]).all() for key, value in classifier.network.state_dict().items())
    assert (classifier.card, classifier.network.training) == (card, mode)
    assert small.network is not classifier.network


REFUSED = {
    "nothing to fit on": ({"prune": 0.5}, BadInput, "prune needs labelled images"),
    "no accuracy": ({"max_loss": 0.01}, BadInput, "max_loss needs labelled images"),
    "no features": ({"head": "pool"}, BadInput, "head=pool needs labelled images"),
    "rank above": ({"ranks": 1000}, BadInput, "a rank of fc6 must be from 1 to 48, as its matrix is 48 × 1,176"),
    "two rules": ({"ranks": 4, "energy": 0.9}, BadConfiguration, "ranks and energy both choose the ranks"),
    "goal and step": ({"max_size": "1MB", "storage": "int4"}, BadConfiguration, "give either"),
    "percent": ({"max_loss": 1}, BadInput, r"1 points are 0\.01"),
    "size": ({"max_size": "small"}, BadInput, "a size such as 12MB"),
    "speed": ({"min_speedup": 0}, BadInput, "min_speedup must be a number above 0"),
    "energy": ({"energy": 90}, BadInput, r"90 % is 0\.9"),
    "everything": ({"prune": 1.0}, BadInput, "prune must be a share above 0 and below 1"),
    "storage": ({"storage": "int3"}, BadInput, "storage must be one of fp32, fp16, int8, int4"),
    "head": ({"head": "dense"}, BadInput, "head must be pool"),
    "size out of reach": (
        {"max_size": "9KB"},
        BadInput,
        r"max_size cannot be reached; the closest of \d+ that were measured is .*int4: .*MB.*with images of its",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_and_nothing_is_written(made, tmp_path, monkeypatch, case):
    options, error, message = REFUSED[case]
    monkeypatch.setattr(search, "ENERGIES", (0.9,))
    with pytest.raises(error, match=message):
        vk.compress(made, out=tmp_path / "folder" / "small.safetensors", quiet=True, **options)
    assert not any(tmp_path.iterdir())


def test_errors_in_the_shell_are_one_line_with_the_options_of_the_shell(made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("compress", made, "--max-size", "9KB", "--quiet") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("vggkit: error: --max-size cannot be reached; the closest of")
    assert shown.count("\n") == 1
    assert not any(tmp_path.iterdir())
    assert call("compress", made, "--out", made, "--storage", "int8") == 2
    assert "is one of the inputs" in capsys.readouterr().err
    assert call("compress", made, "--out", tmp_path / "small.pth", "--storage", "int8") == 2
    assert "must end in .safetensors" in capsys.readouterr().err


def test_images_of_other_classes_are_refused(made, tmp_path):
    with pytest.raises(BadData, match="does not know 0, 1"):
        vk.compress(made, "digits", out=tmp_path / "small.safetensors", prune=0.5, quiet=True)
    assert not any(tmp_path.iterdir())


def test_sizes_are_read_as_people_write_them():
    assert read_size("12MB") == 12_000_000
    assert read_size(" 1.5 mib ") == 1_572_864
    assert read_size(500) == 500
    for wrong in ("0", "-3MB", "12 parsecs", "", "1e6"):
        with pytest.raises(BadInput, match="max_size must be bytes"):
            read_size(wrong)


def test_the_folder_for_the_work_is_gone_after_a_stop(made, photos, tmp_path, monkeypatch):
    """Ctrl-C in the middle: neither the file nor its beginnings stay."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vggkit.compression.steps.prune_channels", stop)
    monkeypatch.setattr("vggkit.compression.steps.measure_sensitivity", lambda *_, **__: ())
    monkeypatch.setattr("vggkit.compression.steps.divide_budget", lambda *_, **__: {})
    with pytest.raises(KeyboardInterrupt):
        vk.compress(made, photos, out=tmp_path / "small.safetensors", prune=0.5, quiet=True)
    assert [path for path in Path(tmp_path).iterdir() if "compress" in path.name or "small" in path.name] == []
