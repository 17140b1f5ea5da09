"""Where do the tokens of text and pictures stand, for models that count in three dimensions?

Qwen's M-RoPE: a text token has one position in time, height and width; a picture begins at the
position after the text before it, its tokens spread in height and width, and the text after it
goes on behind its longer side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def mrope_positions(
    text_positions: NDArray[np.int64],
    is_image: NDArray[np.bool_],
    grids: NDArray[np.int64],
    merge_size: int,
) -> NDArray[np.int64]:
    """(4, T) positions of one row: in the document's text, then time, height, width.

    `text_positions` (T,) begins at 0 in every document. `is_image` (T,) marks image tokens, those
    of `grids` (n, 3: time, height, width in patches) after each other, each picture unbroken.
    The same as the model's own `get_rope_index` of each document alone.
    """
    cells = grids // np.array([1, merge_size, merge_size])
    n_tokens = cells.prod(axis=1)
    step = np.where(is_image, 0, 1)
    image = np.flatnonzero(is_image)
    ends = np.cumsum(n_tokens)
    step[image[ends - 1]] = cells[:, 1:].max(axis=1, initial=0)
    before = np.cumsum(step) - step
    document = np.cumsum(text_positions == 0) - 1
    base = before - before[text_positions == 0][document]
    out = np.broadcast_to(base, (4, len(base))).copy()
    out[0] = text_positions
    within = np.arange(len(image)) - np.repeat(ends - n_tokens, n_tokens)
    height, width = (np.repeat(cells[:, axis], n_tokens) for axis in (1, 2))
    out[1, image] += within // (height * width)
    out[2, image] += within // width % height
    out[3, image] += within % width
    return out
