"""The precisions in which a network is trained, beside float32."""

import copy

import torch
from torch import nn

from vggkit.hardware import computes_bf16
from vggkit.models.vgg import VGG


def copy_in_bfloat16(network: VGG) -> VGG:
    """The network in bfloat16; its batch norms are the given network's own, in float32."""
    norms = {id(module): module for module in network.modules() if isinstance(module, nn.BatchNorm2d)}
    copied = copy.deepcopy(network, norms)  # modules in deepcopy's memo stay shared
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(torch.bfloat16)
    return copied


def choose_autocast(device: torch.device) -> torch.dtype:
    """bfloat16, and float16 on the GPUs that are older than it."""
    return torch.float16 if device.type == "cuda" and not computes_bf16(device) else torch.bfloat16
