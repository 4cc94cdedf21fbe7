"""How evenly the threads of a runtime share an op: the busiest of them says how long it takes.

ONNX Runtime gives each thread as many pieces after each other as the next. Of a convolution from images as they are
into blocks a piece is one line of the image for a set of blocks, and the last set may be small: of five blocks one
thread does four. Of a grouped convolution of images as they are a piece is a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sned.devices.grids import SET
from sned.devices.kernels import FloatArray
from sned.devices.layout import Family

_BY_GROUPS = frozenset({"plain_depthwise", "plain_grouped"})


def unevenness(family: Family, widths: Sequence[FloatArray], block: int, threads: int) -> FloatArray | float:
    """What the busiest thread does of an op, in even shares: 1 where all do the same, `threads` where one does it all.

    Args:
        family: the kind of op, and what no plan changes about it.
        widths: as in `Launch`: `P` of each.
        block: channels in a block of the runtime's layout.
        threads: inside an op.
    """
    if threads == 1:
        return 1.0
    if family.recipe in _BY_GROUPS:
        groups = widths[0] * widths[1]
        return np.asarray(np.ceil(groups / threads) * threads / groups)
    if family.recipe != "direct_conv":
        return 1.0
    output = family["output"]
    assert isinstance(output, tuple)
    images, _, channels = widths
    return _busiest(images, np.ceil(channels / block), float(output[0]), threads)


def _busiest(images: FloatArray, blocks: FloatArray, lines: float, threads: int) -> FloatArray:
    """Of images of so many blocks of channels and lines each."""
    sets = np.ceil(blocks / SET)
    whole = (sets - 1) * lines  # pieces ahead of those of the last set
    last = blocks - (sets - 1) * SET

    def done(pieces: FloatArray) -> FloatArray:
        image, begun = np.divmod(pieces, sets * lines)
        in_this = np.minimum(begun, whole) * SET + np.maximum(begun - whole, 0) * last
        return np.asarray(image * blocks * lines + in_this)

    share, left = np.divmod(images * sets * lines, threads)
    ends = [done(thread * share + np.minimum(thread, left)) for thread in range(threads + 1)]
    return np.asarray(np.diff(ends, axis=0).max(axis=0) * threads / (images * blocks * lines))
