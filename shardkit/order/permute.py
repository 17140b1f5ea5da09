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
_M1, _M2 = map(np.uint64, _MULTIPLIERS)
_S1, _S2, _S3, _ONE = map(np.uint64, (30, 27, 31, 1))
_ROUNDS = np.array([[(number + 1) * GOLDEN & _MASK] for number in range(N_ROUNDS)], np.uint64)
"""(N_ROUNDS, 1) what is added to the key in each round."""
_POWERS = np.array([4**half for half in range(1, 32)], np.uint64)


def mix64(value: int) -> int:
    """The splitmix64 finaliser of one 64-bit integer (Steele, Lea, Flood 2014)."""
    value &= _MASK
    value = ((value ^ (value >> 30)) * _MULTIPLIERS[0]) & _MASK
    value = ((value ^ (value >> 27)) * _MULTIPLIERS[1]) & _MASK
    return value ^ (value >> 31)


def mix64_array(values: U64) -> U64:
    """mix64 of every element."""
    mixed = values ^ (values >> _S1)
    mixed *= _M1
    mixed ^= mixed >> _S2
    mixed *= _M2
    mixed ^= mixed >> _S3
    return mixed


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


Network = Callable[[U64, U64, U64], U64]
"""From (n,) values, half of their bits and (N_ROUNDS, n) round keys to (n,) values."""


def _walk(index: U64, n: int | U64, key: int | U64, network: Network) -> U64:
    values: U64 = np.array(index, np.uint64).ravel()
    sizes, keys = _each_or_one(n), _each_or_one(key)
    half, round_keys = _half_bits(sizes), mix64_array(keys + _ROUNDS)
    todo = np.arange(len(values))
    while len(todo):
        moved = network(values[todo], _at(half, todo), _at(round_keys, todo))
        values[todo] = moved
        todo = todo[moved >= _at(sizes, todo)]
    return values.reshape(index.shape)


def _each_or_one(values: int | U64) -> U64:
    """One value for each element; of shape (1,) when all are equal, which is much less work."""
    array: U64 = np.asarray(values, np.uint64).ravel()
    return array[:1] if (array == array[:1]).all() else array


def _at(values: U64, places: NDArray[np.intp]) -> U64:
    return values if values.shape[-1] == 1 else values[..., places]


def _half_bits(n: U64) -> U64:
    """Half of the smallest even number of bits, at least 2, that holds n - 1."""
    return np.searchsorted(_POWERS, n).astype(np.uint64) + _ONE


def _forward(values: U64, half: U64, round_keys: U64) -> U64:
    mask: U64 = (_ONE << half) - _ONE
    left: U64 = values >> half
    right: U64 = values & mask
    for key in round_keys:
        mixed = mix64_array(right ^ key)
        mixed &= mask
        mixed ^= left
        left, right = right, mixed
    return (left << half) | right


def _backward(values: U64, half: U64, round_keys: U64) -> U64:
    mask: U64 = (_ONE << half) - _ONE
    left: U64 = values >> half
    right: U64 = values & mask
    for key in round_keys[::-1]:
        mixed = mix64_array(left ^ key)
        mixed &= mask
        mixed ^= right
        left, right = mixed, left
    return (left << half) | right
