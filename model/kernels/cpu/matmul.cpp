// x W^T for quantised weights: integer products within a block of 32 columns, exact, then fp32 sums over the blocks in order.
//
// An output is one chain of operations over its own row and its own panel lane, whatever else is computed beside it:
// the same bits for any number of rows, any tiling and any number of threads.
#include "activations.h"
#include "products.h"

namespace headrace::HEADRACE_LEVEL {
namespace {

// Integer sums of a tile. They are exact, so short tiles may spread theirs over more registers (kSplit) to keep the
// multipliers busy.
template <int Rows>
struct Sums {
    static constexpr int kSplit = Rows * kVectors >= 6 ? 1 : Rows * kVectors >= 3 ? 2 : 4;
    RowInts part[kSplit][Rows][kVectors]{};
};

template <int Rows>
INLINE void multiply(Sums<Rows>& sums, int step, const RowInts (&w)[kVectors], const int32_t* lanes) {
    UNROLL for (int row = 0; row < Rows; ++row)
        UNROLL for (int v = 0; v < kVectors; ++v) {
            RowInts& acc = sums.part[step % Sums<Rows>::kSplit][row][v];
            acc = dot2(acc, w[v], lanes[row]);
            settle(acc);
        }
}

typedef uint16_t Unsigned16 __attribute__((vector_size(sizeof(RowInts))));
typedef int16_t Signed16 __attribute__((vector_size(sizeof(RowInts))));

// 16-bit activations: adds the products of one group of columns. `row` is the tile's first.
template <int Rows, class B>
INLINE void add_group(Sums<Rows>& sums, const B& block, const Activations<Int16>& a, int row, int group) {
    constexpr int kLines = B::kBits / B::kGroups;
    RowInts line[kVectors], w[kVectors];
    for (int j = group * kLines; j < (group + 1) * kLines; ++j) {
        UNROLL for (int v = 0; v < kVectors; ++v) line[v] = load_line(block.quants[j] + v * sizeof(RowInts));
        if constexpr (B::kBits == 4) {
            constexpr int kLane[4] = {0, 8, 1, 9};  // columns (4j, +2), (16+4j, +2), (4j+1, +2), (17+4j, +2)
            UNROLL for (int i = 0; i < 4; ++i) {
                UNROLL for (int v = 0; v < kVectors; ++v) w[v] = (RowInts)((Unsigned16)line[v] >> 4 * i) & 0x000f000f;
                multiply<Rows>(sums, i, w, a.lanes[2 * j + kLane[i]] + row);
            }
        } else {
            UNROLL for (int v = 0; v < kVectors; ++v) w[v] = (RowInts)((Signed16)line[v] << 8 >> 8);
            multiply<Rows>(sums, 0, w, a.lanes[2 * j] + row);
            UNROLL for (int v = 0; v < kVectors; ++v) w[v] = (RowInts)((Signed16)line[v] >> 8);
            multiply<Rows>(sums, 1, w, a.lanes[2 * j + 1] + row);
        }
    }
    UNROLL for (int part = 1; part < Sums<Rows>::kSplit; ++part)
        UNROLL for (int r = 0; r < Rows; ++r)
            UNROLL for (int v = 0; v < kVectors; ++v) sums.part[0][r][v] += sums.part[part][r][v];
}

// 8-bit activations and 4-bit weights.
template <int Rows, class B>
INLINE void add_group(Sums<Rows>& sums, const B& block, const Activations<Int8>& a, int row, int) {
    static_assert(B::kBits == 4);
    RowInts line[kVectors], w[kVectors];
    for (int j = 0; j < 4; ++j) {
        UNROLL for (int v = 0; v < kVectors; ++v) line[v] = load_line(block.quants[j] + v * sizeof(RowInts));
        UNROLL for (int high = 0; high < 2; ++high) {
            UNROLL for (int v = 0; v < kVectors; ++v) w[v] = (RowInts)((Unsigned16)line[v] >> 4 * high) & 0x0f0f0f0f;
            UNROLL for (int r = 0; r < Rows; ++r)
                UNROLL for (int v = 0; v < kVectors; ++v) {
                    sums.part[0][r][v] = quads_add(sums.part[0][r][v], w[v], a.lanes[j + 4 * high][row + r]);
                    settle(sums.part[0][r][v]);
                }
        }
    }
    UNROLL for (int r = 0; r < Rows; ++r)
        UNROLL for (int v = 0; v < kVectors; ++v) sums.part[0][r][v] = quads_total(sums.part[0][r][v]);
}

// out [Rows, kPanelRows] += the products of one group under its scales.
template <int Rows, class B, class A>
INLINE void add_scaled(RowFloats (&out)[Rows][kVectors], const Sums<Rows>& sums, const B& block, const A& a, int row,
                       int group) {
    UNROLL for (int r = 0; r < Rows; ++r)
        UNROLL for (int v = 0; v < kVectors; ++v) {
            const RowInts total = sums.part[0][r][v] - B::kOffset * a.sums[row + r];
            const RowFloats scale = load_rows(block.scale[group], v) * a.scales[row + r];
            out[r][v] = fma(to_row_floats(total), scale, out[r][v]);
            if constexpr (B::kHasMinimum)
                out[r][v] = fma(load_rows(block.minimum[group], v), all_lanes(a.masses[row + r]), out[r][v]);
        }
}

// One matrix product in progress.
template <class B, class A>
struct Product {
    const LinearArgs& args;
    const A* activations;  // tiles of quantised rows
    int64_t blocks;        // of a row

    // Rows row.. against one panel. The first to pass over it asks for what comes next, up to `end`.
    template <int Rows>
    void tile(int64_t row, int64_t panel, bool is_first, const B* end) const {
        const B* weights = static_cast<const B*>(args.panels) + panel * blocks;
        const A* a = activations + row / kTileRows * blocks;
        const int inside = int(row % kTileRows);
        RowFloats out[Rows][kVectors]{};
        for (int64_t b = 0; b < blocks; ++b) {
            if (is_first) stream(reinterpret_cast<const char*>(weights + b), sizeof(B), end);
            UNROLL for (int group = 0; group < B::kGroups; ++group) {
                Sums<Rows> sums;
                add_group<Rows>(sums, weights[b], a[b], inside, group);
                add_scaled<Rows>(out, sums, weights[b], a[b], inside, group);
            }
        }
        UNROLL for (int r = 0; r < Rows; ++r)
            UNROLL for (int v = 0; v < kVectors; ++v) store_outputs(args, row + r, panel, v, out[r][v]);
    }

    // Some of `left` rows; how many.
    int64_t some(int64_t left, int64_t row, int64_t panel, bool is_first, const B* end) const {
        if constexpr (kTileRows == 8)
            if (left >= 8) return tile<8>(row, panel, is_first, end), 8;
        if (left >= 4) return tile<4>(row, panel, is_first, end), 4;
        if (left >= 2) return tile<2>(row, panel, is_first, end), 2;
        return tile<1>(row, panel, is_first, end), 1;
    }

    // All rows against one panel at a time, which stays in the first-level cache meanwhile; the rows in slices that stay
    // in the second.
    void panels(int64_t first, int64_t last) const {
        constexpr int64_t kSlice = 64;
        const B* end = static_cast<const B*>(args.panels) + last * blocks;
        for (int64_t slice = 0; slice < args.rows; slice += kSlice) {
            const int64_t stop = slice + kSlice < args.rows ? slice + kSlice : args.rows;
            for (int64_t panel = first; panel < last; ++panel)
                for (int64_t row = slice; row < stop;) row += some(stop - row, row, panel, row == 0, end);
        }
    }
};

template <class B, class Precision>
void multiply_quantized(const LinearArgs& args) {
    using A = Activations<Precision>;
    const int64_t blocks = args.in / kBlockColumns, tiles = (args.rows + kTileRows - 1) / kTileRows;
    A* activations = static_cast<A*>(scratch(tiles * blocks * sizeof(A)));
    const int64_t grain = args.rows * args.in < kValuesWorthSharing ? tiles : 4;
    parallel_ranges(tiles, grain, [&](int64_t first, int64_t last) {
        const int64_t end = last * kTileRows < args.rows ? last * kTileRows : args.rows;
        quantize<Precision>(args.x, args.in, first * kTileRows, end, activations);
    });
    const Product<B, A> product{args, activations, blocks};
    parallel_ranges(panels_of(args), panels_at_a_time(args, blocks * sizeof(B)),
                    [&](int64_t first, int64_t last) { product.panels(first, last); });
}

}  // namespace

template <class B>
void linear_quantized(const LinearArgs& args) {
    if constexpr (B::kBits == 4)
        if (args.precision == kInt8) return multiply_quantized<B, Int8>(args);
    multiply_quantized<B, Int16>(args);  // 8-bit weights gain nothing from 8-bit activations
}

template void linear_quantized<Q4_0>(const LinearArgs&);
template void linear_quantized<Q4_1>(const LinearArgs&);
template void linear_quantized<Q8_0>(const LinearArgs&);
template void linear_quantized<Q5_1>(const LinearArgs&);
template void linear_quantized<Q4_K>(const LinearArgs&);
template void linear_quantized<Q5_K>(const LinearArgs&);
template void linear_quantized<Q6_K>(const LinearArgs&);

}  // namespace headrace::HEADRACE_LEVEL
