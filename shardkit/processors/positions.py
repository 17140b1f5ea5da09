"""Where do the tokens of text and pictures stand, for models that count in three dimensions?

Qwen's M-RoPE: a text token has one position in time, height and width; a picture begins at the
position after the text before it, its tokens spread in height and width, and the text after it
goes on behind its longer side.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardkit.ragged import within


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

    A word, a picture of 1 x 4 x 4 patches merged by 2 (2 x 2 image tokens), a word: the picture is
    one step of 2, its larger side, so steps are [1, 0, 0, 0, 2, 1] and bases [0, 1, 1, 1, 1, 3];
    the picture's height adds [0, 0, 1, 1], its width [0, 1, 0, 1].
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
    place = within(n_tokens)
    height, width = (np.repeat(cells[:, axis], n_tokens) for axis in (1, 2))
    out[1, image] += place // (height * width)
    out[2, image] += place // width % height
    out[3, image] += place % width
    return out
