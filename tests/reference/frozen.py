"""BatchNorm in training by hand: float64, the batch's statistics as numbers that no gradient passes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class HandNorm(nn.Module):
    """y = w (x − m)/√(v + eps) + b with the mean m and the biased variance v of each channel, both detached."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.momentum = layer.weight, layer.bias, layer.eps, layer.momentum
        self.running = None
        if layer.running_mean is not None:
            self.running = [layer.running_mean.double().tolist(), layer.running_var.double().tolist()]
        self.batches = 0

    def forward(self, x: Tensor) -> Tensor:
        columns = []
        self.batches += 1
        for channel in range(x.shape[1]):
            part = x[:, channel]
            numbers = part.detach().flatten().tolist()
            mean = math.fsum(numbers) / len(numbers)
            variance = math.fsum((number - mean) ** 2 for number in numbers) / len(numbers)
            out = (part - mean) / math.sqrt(variance + self.eps)
            if self.weight is not None:
                out = out * self.weight[channel] + self.bias[channel]
            columns.append(out)
            if self.running is not None:
                share = 1 / self.batches if self.momentum is None else self.momentum
                unbiased = variance * len(numbers) / (len(numbers) - 1)
                for kept, new in zip(self.running, (mean, unbiased), strict=True):
                    kept[channel] += share * (new - kept[channel])
        return torch.stack(columns, 1)
