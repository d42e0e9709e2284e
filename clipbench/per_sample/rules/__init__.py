"""Rules: how each kind of autograd node yields per-sample norms and weighted sums. One file for each family.

`READERS` maps the name of an autograd node to the function (node, operands, n) → Use that reads it, or None where
this node is used in a way that the rule does not cover (its parameters then take the slow path).
"""

from __future__ import annotations

from collections.abc import Callable

from clipbench.per_sample.rules.bags import read_embedding_bag
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.rules.bilinear import read_bilinear
from clipbench.per_sample.rules.broadcast import (
    read_add,
    read_addcmul,
    read_div,
    read_expand,
    read_mul,
    read_repeat,
    read_sub,
    read_where,
)
from clipbench.per_sample.rules.convolution import read_convolution
from clipbench.per_sample.rules.embedding import read_embedding, read_index, read_index_select
from clipbench.per_sample.rules.empty import read_empty
from clipbench.per_sample.rules.linear import read_addmm, read_mm
from clipbench.per_sample.rules.lstm import read_lstm
from clipbench.per_sample.rules.node import NodeUse, read_entries, read_node
from clipbench.per_sample.rules.normalization import read_batch_norm, read_group_norm, read_layer_norm
from clipbench.per_sample.rules.prelu import read_prelu
from clipbench.per_sample.rules.products import read_matrix_product, read_vector_product
from clipbench.per_sample.slots import Node, Slot

Reader = Callable[[Node, dict[int, Slot], int], Use | None]

READERS: dict[str, Reader] = {
    "AddmmBackward0": read_addmm,
    "MmBackward0": read_mm,
    "BmmBackward0": read_matrix_product,
    "MvBackward0": read_vector_product,
    "TrilinearBackward0": read_bilinear,
    "ConvolutionBackward0": read_convolution,
    "EmbeddingBackward0": read_embedding,
    "EmbeddingBagBackward0": read_embedding_bag,
    "IndexBackward0": read_index,
    "IndexSelectBackward0": read_index_select,
    "NativeLayerNormBackward0": read_layer_norm,
    "NativeGroupNormBackward0": read_group_norm,
    "NativeBatchNormBackward0": read_batch_norm,
    "CudnnBatchNormBackward0": read_batch_norm,
    "MkldnnRnnLayerBackward0": read_lstm,
    "PreluKernelBackward0": read_prelu,
    "AddBackward0": read_add,
    "SubBackward0": read_sub,
    "MulBackward0": read_mul,
    "DivBackward0": read_div,
    "AddcmulBackward0": read_addcmul,
    "WhereBackward0": read_where,
    "ExpandBackward0": read_expand,
    "RepeatBackward0": read_repeat,
}

__all__ = ["READERS", "NodeUse", "Reader", "Use", "read_empty", "read_entries", "read_node"]
