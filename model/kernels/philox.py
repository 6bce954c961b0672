"""Random numbers that are a function of a key and a counter: Philox4x32-10 (Salmon et al. 2011)."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

Counter = tuple[int, int, int, int]


def philox(counter: Counter, key: tuple[int, int]) -> Counter:
    """Four random words of 32 bits; the known answers of the Random123 library hold."""
    a, b, c, d = counter
    low, high = key
    for _ in range(_ROUNDS):
        first, second = _MULTIPLIERS[0] * a, _MULTIPLIERS[1] * c
        a, b, c, d = (second >> 32) ^ b ^ low, second & _MASK, (first >> 32) ^ d ^ high, first & _MASK
        low, high = (low + _WEYL[0]) & _MASK, (high + _WEYL[1]) & _MASK
    return a, b, c, d


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), with 53 random bits, for one seed (64 bits, signed or not) and one position."""
    key = (seed & _MASK, (seed >> 32) & _MASK)
    high, low, _, _ = philox((position & _MASK, position >> 32, 0, 0), key)
    return ((high << 21) | (low >> 11)) * 2.0**-53
