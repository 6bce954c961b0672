// How packed weights lie in memory: panels of sixteen output rows, so that a vector's lanes are rows and no sum ever
// crosses lanes.
//
// A panel is its rows' blocks of 32 columns, in order, so that a thread reads a matrix from front to back. In a block,
// the four bytes of lane r of a quant line belong to row r. With 4 bits, byte t of line j (0..3) holds column 4j + t in
// its low nibble and column 16 + 4j + t in its high one, which is GGML's own order. With 8 bits, byte t of line j (0..7)
// holds column 4j + t. `model/kernels/cpu/packing.py` writes this layout.
#pragma once
#include "simd.h"

namespace headrace::HEADRACE_LEVEL {

constexpr int kPanelRows = 16;
constexpr int kBlockColumns = 32;

template <class T>
struct PerRow {
    T values[kPanelRows];
};
struct Nothing {};

// weight = scale * (quant - Offset) + minimum. Scale is float or Half, Minimum the same or Nothing; a group of
// 32 / Groups columns shares them. Quants are unsigned with 4 bits and signed with 8.
template <int Bits, class Scale, class Minimum = Nothing, int Offset = 0, int Groups = 1>
struct Block {
    static constexpr int kBits = Bits, kOffset = Offset, kGroups = Groups;
    static constexpr bool kHasMinimum = sizeof(Minimum) > 1;

    uint8_t quants[Bits][kPanelRows * 4];
    PerRow<Scale> scale[Groups];
    Minimum minimum[kHasMinimum ? Groups : 0];
};

using Q4_0 = Block<4, Half, Nothing, 8>;
using Q4_1 = Block<4, Half, PerRow<Half>>;
using Q8_0 = Block<8, Half>;                  // also Q5_0
using Q5_1 = Block<8, Half, PerRow<Half>>;
using Q4_K = Block<4, float, PerRow<float>>;  // also 4-bit integers of safetensors
using Q5_K = Block<8, float, PerRow<float>>;  // also their 8-bit ones
using Q6_K = Block<8, float, Nothing, 0, 2>;  // also Q3_K
static_assert(sizeof(Q4_0) == 288 && sizeof(Q4_1) == 320 && sizeof(Q8_0) == 544 && sizeof(Q6_K) == 640);

// A dense panel: for each column in order, its sixteen weights.
template <class T>
struct Column {
    T weights[kPanelRows];
};

// Calls visit with one block (or column) of the kind, as `packing.py` numbers them.
template <class Visitor>
static inline void with_kind(int64_t kind, const Visitor& visit) {
    switch (kind) {
        case 0: return visit(Q4_0{});
        case 1: return visit(Q4_1{});
        case 2: return visit(Q8_0{});
        case 3: return visit(Q5_1{});
        case 4: return visit(Q4_K{});
        case 5: return visit(Q5_K{});
        case 6: return visit(Q6_K{});
        case 7: return visit(Column<float>{});
        case 8: return visit(Column<Half>{});
        case 9: return visit(Column<Brain>{});
    }
}

}  // namespace headrace::HEADRACE_LEVEL
