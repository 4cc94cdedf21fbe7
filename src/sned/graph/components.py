"""Which labels belong together, as sparse matrices tell it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from sned.graph.ir import IntArray
from sned.graph.relations import Relations


def components(count: int, pairs: Iterable[tuple[IntArray, IntArray]]) -> IntArray:
    """The number of the component that each of `count` things belongs to, where pairs hold together."""
    held = list(pairs)
    if not held:
        return np.arange(count)
    a, b = (np.concatenate(side) for side in zip(*held, strict=True))
    graph = sparse.csr_matrix((np.ones(len(a)), (a, b)), (count, count))  # as SciPy would make it
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def twin_slabs(relations: Relations) -> list[tuple[IntArray, IntArray]]:
    """Labels of slabs on which the very same channels lie, in one view or in all, are the same: two views made the same
    rows, and a slab leaves when nothing of it is left."""
    if not relations.slabs:
        return []
    atom, count = components(relations.count, relations.same), relations.count
    slab, lying = (atom[np.concatenate(side)] for side in zip(*relations.slabs, strict=True))
    view = np.repeat(np.arange(1, len(relations.slabs) + 1), [len(side) for side, _ in relations.slabs])
    seen, row = np.unique(np.concatenate([slab, view * count + slab]), return_inverse=True)
    row, lying = np.divmod(np.unique(row * count + np.tile(lying, 2)), count)
    hashes = np.zeros(len(seen), np.int64)
    np.add.at(hashes, row, np.random.default_rng(2).integers(1, 2**62, count, dtype=np.int64)[lying])
    _, first, index = np.unique(hashes, return_index=True, return_inverse=True)
    label = np.full(int(atom.max()) + 1, -1)
    label[atom] = np.arange(count)  # any label of each atom
    return [(label[seen % count], label[seen[first[index]] % count])]


def matrix(
    pairs: Sequence[tuple[IntArray, IntArray]], shape: tuple[int, int], *, count: bool = False
) -> sparse.csr_matrix:
    """A sparse matrix with ones at (row, column); repeated pairs are counted, or stay one."""
    if not pairs:
        return sparse.csr_matrix(shape, dtype=np.int64)
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    made = sparse.coo_matrix((np.ones(len(rows), np.int64), (rows, columns)), shape).tocsr()
    if not count:
        made.data[:] = 1
    return made


def indicator(rows: Sequence[IntArray], count: int) -> sparse.csr_matrix:
    """`[atoms, rows in line]`: how often each atom stands in each row of each array `[rows, n]`."""
    line = [np.repeat(np.arange(len(r)), r.shape[1]) for r in rows]
    starts = np.cumsum([0, *(len(r) for r in rows)])
    pairs = [(r.ravel(), at + start) for r, at, start in zip(rows, line, starts, strict=False)]
    return matrix(pairs, (count, int(starts[-1])), count=True)
