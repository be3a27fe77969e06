"""Activations as the linear kernels read them."""

from torch import Tensor

from ..ops.reference import as_matrix

_TOKENS = 16  # a row of the feature-major copy is a multiple of this, so that any 8 tokens are one aligned load


def feature_major(x: Tensor) -> Tensor:
    """(..., D) as a contiguous (D, T) with T rounded up, the added tokens zero.

    A nonzero of a weight then reads consecutive tokens of one feature; row by row it would read one element of every
    token. The copy costs two passes over x, the gathers it serves as many as a column of the weight has nonzeros.
    """
    matrix = as_matrix(x)
    tokens, features = matrix.shape
    padding = -tokens % _TOKENS
    if padding == 0:
        return matrix.T.contiguous()
    copy = x.new_empty(features, tokens + padding)
    copy[:, :tokens] = matrix.T
    copy[:, tokens:] = 0
    return copy
