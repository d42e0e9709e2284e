"""Models of standard modules, built from a Spec. One file each.

The output layer of each is called `head`, and a transformer's embeddings `tokens` and `positions`, so that
clippers and optimizers can name them in patterns.
"""

from clipbench.models.airbench import Airbench
from clipbench.models.alexnet import AlexNet, AlexNetFC
from clipbench.models.mlp import MLP
from clipbench.models.torchvision_alexnet import TorchvisionAlexNet
from clipbench.models.transformer import Transformer

__all__ = ["MLP", "Airbench", "AlexNet", "AlexNetFC", "TorchvisionAlexNet", "Transformer"]
