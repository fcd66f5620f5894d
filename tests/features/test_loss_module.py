"""Perceptual losses as modules: copies, processes, and batches whose images are computed some at a time."""

import copy
import pickle
import threading

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

import vggkit as vk
from vggkit.errors import BadInput
from vggkit.models.vgg import VGG

CONFIG = vk.LossConfig(model="vgg16", content={"relu1_2": 1, "conv2_2": 0.5}, style={"relu2_1": 100})


@pytest.fixture(scope="module")
def trunk():
    torch.manual_seed(0)
    return VGG("vgg16", until="relu2_2", head="pool", num_classes=1)


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(3, 3, 16, 20), torch.rand(3, 3, 16, 20)


def differentiate(loss, images, *others, **named):
    given = images.clone().requires_grad_(True)
    value = loss(given, *others, **named)
    value.sum().backward()
    return value.detach(), given.grad


def demand_equal(ours, theirs):
    for found, expected in zip(ours, theirs, strict=True):
        assert (found - expected).norm() <= 1e-9 * expected.norm()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_is_a_loss_of_its_own(copied, trunk, images):
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, convolution="winograd")
    value = loss(*images)
    other = copied(loss)
    assert other.config == loss.config
    assert torch.equal(other(*images), value)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(loss(*images), value)


@pytest.mark.parametrize(("at_once", "reduction"), [(1, "mean"), (2, "none")])
def test_how_many_images_are_computed_at_once_changes_nothing(at_once, reduction, trunk, images):
    some, every = (
        vk.PerceptualLoss(CONFIG, trunk=trunk, images_at_once=each, reduction=reduction).double()
        for each in (at_once, 3)
    )
    given, target = (each.double() for each in images)
    expected = differentiate(every, given, target)
    demand_equal(differentiate(some, given, target), expected)
    demand_equal(differentiate(some, given, some.reference(target)), expected)
    demand_equal(differentiate(some, given, target[:1]), differentiate(every, given, target[:1]))
    style = torch.rand(1, 3, 32, 17).double()
    both = {"content": target, "style": every.reference(style)}
    demand_equal(differentiate(some, given, **both), differentiate(every, given, **both))
    with torch.no_grad():
        assert torch.allclose(some(given, target), expected[0])
    weights = torch.rand(3).double()
    if reduction == "none":
        one, other = (
            torch.func.grad(lambda each, of=of: weights @ of(each, target))(given) for of in (some, every)
        )
        demand_equal([one], [other])


def test_what_cannot_be_differentiated_twice_says_so(trunk, images):
    given = images[0].clone().requires_grad_(True)
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, images_at_once=1)
    (gradient,) = torch.autograd.grad(loss(given, images[1]), given, create_graph=True)
    with pytest.raises(BadInput, match="can be differentiated once"):
        gradient.square().sum().backward()
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, images_at_once=3)
    (gradient,) = torch.autograd.grad(loss(given, images[1]), given, create_graph=True)
    gradient.square().sum().backward()
    assert given.grad.isfinite().all()


def test_the_target_of_all_layers_passes_once(trunk, images, monkeypatch):
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, images_at_once=2)
    passed = []
    compute = loss._compute
    monkeypatch.setattr(loss, "_compute", lambda each: passed.append(len(each)) or compute(each))
    loss(*images)
    assert sorted(passed) == [1, 1, 2, 2]
    passed.clear()
    loss(images[0], loss.reference(images[1]))
    assert passed == [2, 1, 2, 1]


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def two_threads(set_threads):
    set_threads(2)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("at_once", [1, 3])
def test_images_and_target_at_the_same_time(at_once, threads, trunk, images, set_threads):
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, convolution="winograd", images_at_once=at_once)
    given, target = images
    set_threads(threads)
    found = [differentiate(loss, given, target), differentiate(loss, given, content=target, style=target[:1])]
    assert loss(given, given) == 0
    with torch.no_grad():
        assert not loss(given, target).requires_grad
    assert torch.get_num_threads() == threads
    set_threads(1)
    for ours, named in zip(found, ({"target": target}, {"content": target, "style": target[:1]}), strict=True):
        value, gradient = differentiate(loss, given, **named)
        assert torch.allclose(ours[0], value, rtol=1e-5)
        assert (ours[1] - gradient).norm() <= 1e-4 * gradient.norm()


def test_an_image_is_at_no_distance_from_a_reference_to_itself(two_threads):
    """Which algorithm is faster depends on the number of threads: both are computed with the same."""
    torch.manual_seed(0)
    trunk = VGG("vgg16", until="relu3_1", head="pool", num_classes=1)
    config = vk.LossConfig(model="vgg16", content={"relu3_1": 1}, style={"relu3_1": 1})
    loss = vk.PerceptualLoss(config, trunk=trunk, convolution="winograd")
    image = torch.rand(1, 3, 32, 32)
    assert loss(image, loss.reference(image)) == 0
    assert not any(loss.terms(image, content=image, style=loss.reference(image)).values())


def test_several_callers_take_turns(trunk, images, set_threads):
    set_threads(4)
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, convolution="winograd")
    expected, together, found = loss(*images), threading.Barrier(3), []

    def compute():
        torch.get_num_threads()  # a thread takes the number that is set when it uses torch first
        together.wait()
        for _ in range(3):
            found.append((float(loss(*images)), torch.get_num_threads()))

    threads = [threading.Thread(target=compute) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [(float(expected), 4)] * 9


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:FutureWarning")
def test_a_tangent_of_the_target_is_not_lost(trunk, images, two_threads):
    """The contexts of torch.func belong to a thread."""
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, convolution="winograd", images_at_once=3)
    given, target = images
    with pytest.raises((NotImplementedError, RuntimeError)):
        torch.func.jvp(lambda each: loss(given, each), (target,), (torch.ones_like(target),))
    gradient = torch.func.grad(lambda each: loss(given, each))(target)
    expected = differentiate(lambda each: loss(given, each), target)[1]
    assert torch.allclose(gradient, expected)


@pytest.mark.parametrize("which", [0, 1])
def test_an_error_leaves_the_number_of_threads(which, trunk, images, two_threads, monkeypatch):
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, convolution="winograd")
    compute, failing = loss._compute, images[which]

    def fail(each):
        if each is failing:
            raise MemoryError("no memory is left")
        return compute(each)

    monkeypatch.setattr(loss, "_compute", fail)
    with pytest.raises(MemoryError, match="no memory is left"):
        loss.terms(*images)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_is_at_no_distance_from_itself(precision, trunk):
    """Also where its sides are odd: pools are computed in two ways, with a gradient and without."""
    images = torch.rand(2, 3, 21, 27, requires_grad=True)
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk, precision=precision)
    assert loss(images, images.detach()) == 0
    assert loss(images, loss.reference(images)) == 0


def test_sizes_and_counts_are_compared_first(trunk, images):
    loss = vk.PerceptualLoss(CONFIG, trunk=trunk)
    with pytest.raises(BadInput, match=r"the images have 20×16 pixels, the target 12×16"):
        loss(images[0], images[1][..., :12])
    with pytest.raises(BadInput, match="3 images are compared with as many or with one, not with 2"):
        loss(images[0], images[1][:2])
    with pytest.raises(BadInput, match="floating point"):
        loss(images[0], style="style.png")


class Generator(nn.Module):
    """A network that learns, and the loss it learns from."""

    def __init__(self, loss):
        super().__init__()
        self.layer, self.loss = nn.Conv2d(3, 3, 1), loss

    def forward(self, images, target):
        return self.loss(self.layer(images).sigmoid(), target)


def test_distributed_data_parallel_holds_it(trunk, images, tmp_path):
    if not distributed.is_available():
        pytest.skip("torch without torch.distributed")
    torch.manual_seed(0)
    plain = Generator(vk.PerceptualLoss(CONFIG, trunk=trunk, images_at_once=2))
    plain(*images).backward()
    wrapped = copy.deepcopy(plain)
    wrapped.zero_grad()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        DistributedDataParallel(wrapped)(*images).backward()
    finally:
        distributed.destroy_process_group()
    assert torch.allclose(wrapped.layer.weight.grad, plain.layer.weight.grad)
    assert all(each.grad is None for each in wrapped.loss.parameters())
