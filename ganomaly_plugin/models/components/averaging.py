# SPDX-License-Identifier: Apache-2.0
"""Weight averaging whose memory grows with the training, so that short and long trainings need no tuning.

Lightning's ``WeightAveraging`` callback cannot take its place: it averages the whole Lightning module, discriminators
and frozen networks too, and swaps the weights in and out, while f-AnoGAN's encoder trains against averaged networks.
"""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]

EXPONENT = 6.94
"""Exponent of the power-function average whose profile has a standard deviation of a tenth of the training so far."""


def power_average(network: nn.Module) -> AveragedModel:
    """Return an exponential moving average (EMA) of a network's weights and batch-norm statistics.

    After step ``t`` the average moves towards the weights by ``1 - (1 - 1/t) ** (EXPONENT + 1)``: it copies
    them in the beginning and later covers about the last tenth of the training, however long that is (power-function
    EMA, Karras et al., CVPR 2024, section 3.1). Call ``update_parameters(network)`` after each optimiser step.

    Args:
        network: The network in training. The average starts as a copy, whose parameters take no gradients.
    """
    average = AveragedModel(network, multi_avg_fn=_move_towards, use_buffers=True)
    return average.requires_grad_(False)


@torch.no_grad()
def _move_towards(average: Tensors, current: Tensors, n_averaged: torch.Tensor | int) -> None:
    weight = 1 - (1 - 1 / (torch.as_tensor(n_averaged) + 1)) ** (EXPONENT + 1)
    for averaged_value, value in zip(average, current, strict=True):
        if averaged_value.is_floating_point():
            averaged_value.lerp_(value, weight.to(averaged_value.dtype))
        else:  # Counters of batches.
            averaged_value.copy_(value)
