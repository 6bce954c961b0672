// The transcendental functions, eight at a time. Errors are stated against the exact value, over all finite floats.
#pragma once
#include "simd.h"

namespace headrace::HEADRACE_LEVEL {

// e^x = 2^n (1 + rest), with |ln 2 / 2| bounding the argument of rest: its Taylor series to the 7th power is off by
// less than 6e-9.
struct Exponential {
    Floats power, rest;
};

INLINE Exponential exponential(Floats x) {
    x = choose(x < -87.0f, splat(-87.0f), x);  // NaN passes all comparisons
    x = choose(x > 88.0f, splat(88.0f), x);
    const Ints n = round_to_ints(x * 1.44269504f);
    const Floats whole = to_floats(n);
    // ln 2 in two parts, the first with so few bits that its product with n is exact.
    const Floats r = fma(whole, splat(2.12194440e-4f), fma(whole, splat(-0.693359375f), x));
    Floats series = splat(1.0f / 5040);
    series = fma(series, r, splat(1.0f / 720));
    series = fma(series, r, splat(1.0f / 120));
    series = fma(series, r, splat(1.0f / 24));
    series = fma(series, r, splat(1.0f / 6));
    series = fma(series, r, splat(1.0f / 2));
    return {as_floats((n + 127) << 23), fma(series, r * r, r)};
}

// Within 1.5 units in the last place for -87 <= x <= 88; zero below, e^88 above.
INLINE Floats exp(Floats x) {
    const Exponential e = exponential(x);
    return choose(x < -87.0f, splat(0.0f), fma(e.power, e.rest, e.power));
}

// Within 3 units in the last place.
INLINE Floats tanh(Floats x) {
    const Floats magnitude = choose(abs(x) > 10.0f, splat(10.0f), abs(x));
    const Exponential e = exponential(2.0f * magnitude);
    const Floats minus_one = fma(e.power, e.rest, e.power - 1.0f);  // e^2x - 1, without cancellation near zero
    const Floats value = minus_one / (minus_one + 2.0f);
    return as_floats(as_bits(value) | (as_bits(x) & INT32_MIN));
}

// Within 3e-7. Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
INLINE Floats erf(Floats x) {
    const Floats t = 1.0f / fma(abs(x), splat(0.3275911f), splat(1.0f));
    Floats series = splat(1.061405429f);
    series = fma(series, t, splat(-1.453152027f));
    series = fma(series, t, splat(1.421413741f));
    series = fma(series, t, splat(-0.284496736f));
    series = fma(series, t, splat(0.254829592f));
    const Floats value = 1.0f - series * t * exp(-x * x);
    return as_floats(as_bits(value) | (as_bits(x) & INT32_MIN));
}

}  // namespace headrace::HEADRACE_LEVEL
