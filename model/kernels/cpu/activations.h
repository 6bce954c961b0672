// How activations are quantised: 16 (or 8) bits under one scale per 32 values, laid out as the products read them.
#pragma once
#include "lanes.h"

namespace headrace::HEADRACE_LEVEL {

// Rows of activations that share a tile of the product: as many as leave its sums in registers.
constexpr int kTileRows = kVectors == 1 ? 8 : 4;

// Columns 4i..4i+3 are the int16 pairs (4i, 4i+2) and (4i+1, 4i+3): the halves of a weight vector's 16-bit words.
struct Int16 {
    static constexpr int kLimit = 32767, kLanesPerBlock = 16;
    INLINE void pack(const int32_t* n, int32_t* lane, int stride) {
        for (int i = 0; i < kBlockColumns; i += 4) {
            lane[i / 2 * stride] = (n[i] & 0xffff) | int32_t(uint32_t(n[i + 2]) << 16);
            lane[(i / 2 + 1) * stride] = (n[i + 1] & 0xffff) | int32_t(uint32_t(n[i + 3]) << 16);
        }
    }
};

// Columns 4i..4i+3 are the four bytes of a lane. Opt-in: on SmolLM2-135M it costs a KL of 0.0024, Int16 costs 7e-8.
struct Int8 {
    static constexpr int kLimit = 127, kLanesPerBlock = 8;
    INLINE void pack(const int32_t* n, int32_t* lane, int stride) {
        for (int i = 0; i < kBlockColumns; i += 4)
            lane[i / 4 * stride] = (n[i] & 0xff) | (n[i + 1] & 0xff) << 8 | (n[i + 2] & 0xff) << 16 |
                                   int32_t(uint32_t(n[i + 3]) << 24);
    }
};

// One block of a tile's rows.
template <class Precision>
struct Activations {
    int32_t lanes[Precision::kLanesPerBlock][kTileRows];
    int32_t sums[kTileRows];  // of the integers
    float masses[kTileRows];  // scale * sum
    float scales[kTileRows];
};

constexpr float kSmallestMagnitude = 1e-30f;  // whose inverse is a number still

// The largest magnitude of `count` values; a NaN counts as larger than infinity, so that it reaches the outputs.
INLINE float largest_magnitude(const float* x, int64_t count) {
    Ints most{};
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
        const Ints bits = load_bits(x + i) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    const Ints bits = as_bits(load_first(x + i, count - i)) & 0x7fffffff;
    most = bits > most ? bits : most;
    int32_t top = 0;
    for (int lane = 0; lane < kLanes; ++lane) top = most[lane] > top ? most[lane] : top;
    float magnitude;
    memcpy(&magnitude, &top, sizeof magnitude);
    return magnitude;
}

// x = scale * n + error, with |error| <= scale / 2.
template <class Precision>
INLINE void quantize_block(const float* x, Activations<Precision>* to, int row) {
    const float magnitude = largest_magnitude(x, kBlockColumns);
    const float inverse = magnitude > kSmallestMagnitude ? Precision::kLimit / magnitude : 0.0f;
    int32_t n[kBlockColumns];
    Ints total{};
    for (int i = 0; i < kBlockColumns; i += kLanes) {
        const Ints rounded = round_to_ints(load(x + i) * inverse);
        memcpy(n + i, &rounded, sizeof rounded);
        total += rounded;
    }
    Precision::pack(n, &to->lanes[0][row], kTileRows);
    to->scales[row] = magnitude / Precision::kLimit;
    to->sums[row] = sum(total);
    to->masses[row] = to->scales[row] * float(to->sums[row]);
}

// Rows first..last-1 of x [rows, columns] into tiles of kTileRows rows, each tile's blocks in order.
template <class Precision>
static void quantize(const float* x, int64_t columns, int64_t first, int64_t last, Activations<Precision>* tiles) {
    const int64_t blocks = columns / kBlockColumns;
    for (int64_t row = first; row < last; ++row)
        for (int64_t b = 0; b < blocks; ++b)
            quantize_block(x + row * columns + b * kBlockColumns, &tiles[row / kTileRows * blocks + b], row % kTileRows);
}

}  // namespace headrace::HEADRACE_LEVEL
