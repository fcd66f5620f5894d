"""A teacher: its probabilities and similarities are learnt beside the labels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import vggkit as vk
from vggkit.errors import BadCheckpoint, BadConfiguration
from vggkit.images.preprocessing import choose_preprocessing
from vggkit.training.distillation import DistillationWeights, Teacher, compare_similarities
from vggkit.training.recipe import Recipe
from vggkit.training.train_state import TrainState

CPU = torch.device("cpu")
RECIPE = Recipe(trainable="all", batch_size=8, learning_rate=0.05, weight_decay=0.0, precision="fp32")


def make(tiny, seed: int) -> vk.VGG:
    torch.manual_seed(seed)
    return vk.VGG(tiny)


def test_the_loss_is_hintons_and_the_similarities(tiny):
    teacher, student = make(tiny, 0).eval(), make(tiny, 1)
    images, hard = torch.randn(6, 3, 32, 32), torch.tensor(1.5)
    maps = student.features(images)
    logits = student.read(maps, student.classifier)
    given = DistillationWeights(temperature=3.0, soft_share=0.7, feature_weight=2.0)
    found = Teacher(teacher, device=CPU, weights=given).join(hard, images, logits, maps)
    with torch.no_grad():
        wanted_maps, wanted = teacher.features(images), teacher(images)
    target = (wanted / 3).softmax(1)
    soft = (target * (target.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    rows = [each.flatten(1) @ each.flatten(1).T for each in (maps, wanted_maps)]
    apart = [each / each.norm(dim=1, keepdim=True) for each in rows]
    features = (apart[0] - apart[1]).square().sum(1).mean()
    assert torch.allclose(found, 0.3 * hard + 0.7 * 9 * soft + 2 * features, rtol=1e-5)


def test_similarities_need_no_common_channels():
    first = torch.rand(5, 4, 2, 2)
    assert compare_similarities(first, torch.cat([first, first], 1)) < 1e-10
    assert compare_similarities(first, torch.rand(5, 9, 1, 1)) > 1e-4


def test_steps_move_a_student_to_its_teacher_whatever_the_labels(tiny):
    teacher, student = make(tiny, 0).eval(), make(replace(tiny, blocks=((4,), (6,), (8, 8), (8, 8), (8, 8))), 1)
    with torch.no_grad():
        teacher.classifier[-1].weight.mul_(300)
    images = torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    state = TrainState(student, RECIPE, device=CPU, teacher=Teacher(teacher, device=CPU))
    before = {key: value.clone() for key, value in teacher.state_dict().items()}

    def differ() -> float:
        with torch.no_grad():
            pair = (student(images).log_softmax(1), teacher(images).log_softmax(1))
        return float(F.kl_div(*pair, log_target=True, reduction="batchmean"))

    state.start_epoch(1)
    started = differ()
    for number in range(15):
        state.compute(images, torch.zeros(12, dtype=torch.int64), draw=number)
        assert state.step(0.05, number=number)
    assert differ() < 0.7 * started
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


def save(tiny, folder: Path, labels: list[str], pixels: int = 32) -> Path:
    fed = choose_preprocessing(pixels)
    path = folder / f"{pixels}-{labels[0]}.safetensors"
    vk.Classifier.create(tiny, labels=labels, preprocessing=fed, seed=0).save(path)
    return path


@pytest.mark.slow
def test_a_training_records_its_teacher_and_refuses_one_that_cannot_be(tiny, photos, tmp_path):
    labels = ["across", "down", "red"]
    teacher = save(tiny, tmp_path, labels)
    options = {"model": tiny, "image_size": 32, "epochs": 1, "batch_size": 16, "quiet": True}
    run = vk.train(photos, **options, teacher=teacher, out=tmp_path / "run")
    assert vk.RunConfig.read(run.directory).teacher == str(teacher)
    alone = vk.train(photos, **options, out=tmp_path / "alone")
    assert run.history[0].train_loss != alone.history[0].train_loss
    with pytest.raises(BadConfiguration, match="a teacher names the same classes"):
        vk.train(photos, **options, teacher=save(tiny, tmp_path, ["a", "b", "c"]), out=tmp_path / "one")
    with pytest.raises(BadConfiguration, match="a teacher sees the same input"):
        vk.train(photos, **options, teacher=save(tiny, tmp_path, labels, pixels=64), out=tmp_path / "two")
    with pytest.raises(BadCheckpoint, match="no such file"):
        vk.train(photos, model="vgg11", teacher=tmp_path / "none.safetensors", out=tmp_path / "three", quiet=True)
    assert not (tmp_path / "three").exists()
