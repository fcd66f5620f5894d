"""Low rank and folding: closed forms, held to their definitions."""

import pytest
import torch

import vggkit as vk
from vggkit.compression.folding import fold
from vggkit.compression.low_rank import check_ranks, choose_ranks, factorize, find_spectra
from vggkit.errors import BadConfiguration, BadInput
from vggkit.models.configure import configure


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def make(configuration, seed=0, pixels=64, count=96):
    torch.manual_seed(seed)
    network = vk.VGG(configuration, initialization="kaiming")
    images = torch.randn(count, 3, pixels, pixels)
    with torch.no_grad():
        network(images)  # batch norm's statistics
        for module in network.classifier:
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(8)
    return network.eval().requires_grad_(False), images


def lose(network, other, images):
    return float((network(images) - other(images)).square().sum() / network(images).square().sum())


def test_without_images_it_is_the_truncated_svd(fully_connected):
    network, _ = make(fully_connected)
    smaller = factorize(network, find_spectra(network), (9, 5))
    assert smaller.configuration.ranks == (9, 5, None)
    matrix = network.classifier[0].weight
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    best = left[:, :9] * values[:9] @ right[:9]
    down, up = smaller.classifier[0]
    assert torch.allclose(up.weight @ down.weight, best, atol=1e-5)
    assert torch.allclose(up.bias, network.classifier[0].bias)


def test_with_images_the_output_is_kept_better_than_by_the_svd(fully_connected):
    network, images = make(fully_connected)
    known, new = images[:64], images[64:]
    plain = factorize(network, find_spectra(network), (4, 4))
    fitted = factorize(network, find_spectra(network, known.split(16)), (4, 4))
    assert lose(network, fitted, known) < 0.5 * lose(network, plain, known)
    assert lose(network, fitted, new) < lose(network, plain, new)


def test_full_energy_changes_nothing_and_less_energy_needs_less_rank(fully_connected):
    network, images = make(fully_connected)
    spectra = find_spectra(network, images.split(32))
    whole, some = choose_ranks(spectra, 1.0), choose_ranks(spectra, 0.9)
    assert all(less < more for less, more in zip(some, whole, strict=True))
    assert lose(network, factorize(network, spectra, whole), images) < 1e-6
    # Two factors that would hold as much as the matrix are not made.
    assert factorize(network, spectra, (48, 32)).configuration.ranks is None


def test_factors_are_factored_again(fully_connected):
    network, images = make(fully_connected)
    once = factorize(network, find_spectra(network, [images]), (12, 8))
    twice = factorize(once, find_spectra(once, [images]), (5, 4))
    assert twice.configuration.ranks == (5, 4, None)
    assert lose(once, twice, images) < 0.5


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        ((0,), "a rank of fc6 must be from 1 to 48"),
        ((49, 4), r"as its matrix is 48 × 1,176; got 49"),
        ((4, 4, 4), "one for all or one for each of fc6, fc7"),
    ],
)
def test_ranks_that_cannot_be_are_refused(fully_connected, ranks, message):
    with pytest.raises(BadInput, match=message):
        check_ranks(fully_connected, ranks)
    with pytest.raises(BadConfiguration, match="has only the last one"):
        check_ranks(configure("vgg11", head="pool"), (4,))


@pytest.mark.parametrize(("pixels", "grid"), [(32, 1), (64, 2), (96, 3), (160, 5)])
def test_folding_is_exact_for_images_of_its_size(fully_connected, pixels, grid):
    network, images = make(fully_connected, pixels=pixels, count=4)
    smaller = fold(network, pixels=pixels)
    assert smaller.configuration.grid == grid
    assert torch.allclose(smaller(images), network(images), rtol=1e-4, atol=1e-4)


def test_nothing_is_folded_where_the_map_is_as_large_as_the_grid(fully_connected):
    network, _ = make(fully_connected)
    assert fold(network, pixels=224) is network
    pooled = vk.VGG(configure("vgg11", until="pool2", num_classes=2))
    assert fold(pooled, pixels=32) is pooled


def test_a_low_rank_layer_is_folded_in_its_first_factor(fully_connected):
    network, images = make(fully_connected, pixels=32)
    smaller = factorize(network, find_spectra(network, [images]), (6, 4))
    folded = fold(smaller, pixels=32)
    assert folded.classifier[0][0].weight.shape == (6, 24)
    assert torch.allclose(folded(images), smaller(images), rtol=1e-4, atol=1e-4)
