"""A keyed permutation of range(n) that needs no table (docs/format.md, sections 8.1 and 8.2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio, odd: the increment of splitmix64."""
N_ROUNDS = 6
_MASK = 2**64 - 1
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def mix64(value: int) -> int:
    """The splitmix64 finaliser of one 64-bit integer (Steele, Lea, Flood 2014)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _MASK
    return value ^ (value >> 31)


def mix64_array(values: U64) -> U64:
    """mix64 of every element."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(_MULTIPLIERS[0])
    values = (values ^ (values >> np.uint64(27))) * np.uint64(_MULTIPLIERS[1])
    return values ^ (values >> np.uint64(31))


def derive_key(*parts: int) -> int:
    """One 64-bit key from several integers; the order counts."""
    key = 0
    for part in parts:
        key = mix64((key ^ (part & _MASK)) + GOLDEN)
    return key


def derive_keys(key: int, parts: U64) -> U64:
    """derive_key with one more part, for every element of `parts`, given the key so far."""
    return mix64_array((np.uint64(key) ^ parts) + np.uint64(GOLDEN))


def permute(index: U64, n: int | U64, key: int | U64) -> U64:
    """Where `index` goes in the permutation of range(n) that `key` chooses.

    Shape and dtype of `index` are kept, every value below its `n`. `n` and `key` may be arrays
    of the same shape: one permutation for each element. A Feistel network of six rounds on the
    smallest even number of bits that holds n, walked until the result is below n.
    """
    return _walk(index, n, key, _forward)


def unpermute(index: U64, n: int | U64, key: int | U64) -> U64:
    """The inverse of `permute`."""
    return _walk(index, n, key, _backward)


def _walk(index: U64, n: int | U64, key: int | U64, step: Callable[[U64, U64, U64], U64]) -> U64:
    shape = index.shape
    values: U64 = np.array(index, np.uint64).ravel()
    sizes = np.broadcast_to(np.asarray(n, np.uint64), shape).ravel()
    keys = np.broadcast_to(np.asarray(key, np.uint64), shape).ravel()
    half = _half_bits(sizes)
    todo = np.arange(len(values))
    while len(todo):
        values[todo] = step(values[todo], half[todo], keys[todo])
        todo = todo[values[todo] >= sizes[todo]]
    return values.reshape(shape)


def _half_bits(n: U64) -> U64:
    """Half of the smallest even number of bits, at least 2, that holds n - 1."""
    bits = np.ones(n.shape, np.uint64)
    if not len(n):
        return bits
    for half in range(1, 32):
        np.maximum(bits, np.where(n > np.uint64(4**half), np.uint64(half + 1), bits), out=bits)
        if int(n.max()) <= 4**half:
            break
    return bits


def _round_key(keys: U64, number: int) -> U64:
    return mix64_array(keys + np.uint64(((number + 1) * GOLDEN) & _MASK))


def _forward(values: U64, half: U64, keys: U64) -> U64:
    mask: U64 = (np.uint64(1) << half) - np.uint64(1)
    left: U64 = values >> half
    right: U64 = values & mask
    for number in range(N_ROUNDS):
        mixed: U64 = mix64_array(right ^ _round_key(keys, number)) & mask
        left, right = right, left ^ mixed
    return (left << half) | right


def _backward(values: U64, half: U64, keys: U64) -> U64:
    mask: U64 = (np.uint64(1) << half) - np.uint64(1)
    left: U64 = values >> half
    right: U64 = values & mask
    for number in reversed(range(N_ROUNDS)):
        mixed: U64 = mix64_array(left ^ _round_key(keys, number)) & mask
        left, right = right ^ mixed, left
    return (left << half) | right
