"""A network of another configuration from given tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor

from vggkit.models.configuration import Configuration
from vggkit.models.vgg import VGG


def build_network(configuration: Configuration, state: Mapping[str, Tensor]) -> VGG:
    """The network with these tensors, which it takes as they are, in evaluation mode."""
    with torch.device("meta"):
        network = VGG(configuration)
    plain = {key: value.detach().contiguous() for key, value in state.items()}
    network.load_state_dict(plain, assign=True)
    return network.requires_grad_(True).eval()


def copy_state(network: VGG) -> dict[str, Tensor]:
    """The tensors of a network, float32 on the CPU, as copies."""
    found = {key: value.detach().cpu() for key, value in network.state_dict().items()}
    return {key: (value.float() if value.is_floating_point() else value).clone() for key, value in found.items()}
