// x W^T for quantised weights: integer products within a block of 32 columns, exact, then fp32 sums over the blocks in order.
//
// An output is one chain of operations over its own row and its own panel lane, whatever else is computed beside it:
// the same bits for any number of rows, any tiling and any number of threads.
#include "activations.h"
#include "products.h"

namespace headrace::HEADRACE_LEVEL {
namespace {

// Sums of a tile: rows x panels. Integer sums are exact, so short tiles may spread theirs over more registers (kSplit)
// to keep the multipliers busy.
template <int Rows, int Panels>
struct Sums {
    static constexpr int kSplit = Rows * Panels >= 6 ? 1 : Rows * Panels >= 3 ? 2 : 4;
    Ints part[kSplit][Rows][Panels]{};
};

template <int Rows, int Panels, class S>
INLINE void multiply(S& sums, int step, const Ints (&w)[Panels], const int32_t* lanes) {
    UNROLL for (int row = 0; row < Rows; ++row) {
        const Ints a = splat(lanes[row]);
        UNROLL for (int p = 0; p < Panels; ++p) {
            Ints& acc = sums.part[step % S::kSplit][row][p];
            acc = dot2(acc, w[p], a);
            settle(acc);
        }
    }
}

typedef uint16_t Unsigned16 __attribute__((vector_size(32)));
typedef int16_t Signed16 __attribute__((vector_size(32)));

template <class B, int Panels>
using Blocks = const B* const (&)[Panels];

// 16-bit activations: adds the products of one group of columns.
template <class B, int Rows, int Panels, class S>
INLINE void add_group(S& sums, Blocks<B, Panels> block, const Activations<Wide>& a, int group) {
    constexpr int kVectors = B::kBits / B::kGroups;
    Ints packed[Panels], w[Panels];
    for (int j = group * kVectors; j < (group + 1) * kVectors; ++j) {
        UNROLL for (int p = 0; p < Panels; ++p) packed[p] = load_bits(block[p]->quants[j]);
        if constexpr (B::kBits == 4) {
            constexpr int kLane[4] = {0, 8, 1, 9};  // columns (4j, +2), (16+4j, +2), (4j+1, +2), (17+4j, +2)
            UNROLL for (int i = 0; i < 4; ++i) {
                UNROLL for (int p = 0; p < Panels; ++p) w[p] = (Ints)((Unsigned16)packed[p] >> 4 * i) & 0x000f000f;
                multiply<Rows, Panels>(sums, i, w, a.lanes[2 * j + kLane[i]]);
            }
        } else {
            UNROLL for (int p = 0; p < Panels; ++p) w[p] = (Ints)((Signed16)packed[p] << 8 >> 8);
            multiply<Rows, Panels>(sums, 0, w, a.lanes[2 * j]);
            UNROLL for (int p = 0; p < Panels; ++p) w[p] = (Ints)((Signed16)packed[p] >> 8);
            multiply<Rows, Panels>(sums, 1, w, a.lanes[2 * j + 1]);
        }
    }
    UNROLL for (int part = 1; part < S::kSplit; ++part)
        UNROLL for (int row = 0; row < Rows; ++row)
            UNROLL for (int p = 0; p < Panels; ++p) sums.part[0][row][p] += sums.part[part][row][p];
}

// 8-bit activations and 4-bit weights.
template <class B, int Rows, int Panels, class S>
INLINE void add_group(S& sums, Blocks<B, Panels> block, const Activations<Narrow>& a, int) {
    static_assert(B::kBits == 4);
    Ints packed[Panels], w[Panels];
    for (int j = 0; j < 4; ++j) {
        UNROLL for (int p = 0; p < Panels; ++p) packed[p] = load_bits(block[p]->quants[j]);
        UNROLL for (int high = 0; high < 2; ++high) {
            UNROLL for (int p = 0; p < Panels; ++p) w[p] = (Ints)((Unsigned16)packed[p] >> 4 * high) & 0x0f0f0f0f;
            UNROLL for (int row = 0; row < Rows; ++row) {
                const Ints values = splat(a.lanes[j + 4 * high][row]);
                UNROLL for (int p = 0; p < Panels; ++p) {
                    sums.part[0][row][p] = quads_add(sums.part[0][row][p], w[p], values);
                    settle(sums.part[0][row][p]);
                }
            }
        }
    }
    UNROLL for (int row = 0; row < Rows; ++row)
        UNROLL for (int p = 0; p < Panels; ++p) sums.part[0][row][p] = quads_total(sums.part[0][row][p]);
}

// out [Rows, Panels * 8] += the products of one group under its scales.
template <class B, int Rows, int Panels, class S, class A>
INLINE void add_scaled(Floats (&out)[Rows][Panels], const S& sums, Blocks<B, Panels> block, const A& a, int group) {
    UNROLL for (int row = 0; row < Rows; ++row)
        UNROLL for (int p = 0; p < Panels; ++p) {
            const Ints total = sums.part[0][row][p] - B::kOffset * a.sums[row];
            out[row][p] = fma(to_floats(total), load(block[p]->scale[group]) * a.scales[row], out[row][p]);
            if constexpr (B::kHasMinimum)
                out[row][p] = fma(load(block[p]->minimum[group]), splat(a.masses[row]), out[row][p]);
        }
}

// One matrix product in progress.
template <class B, class A>
struct Product {
    const LinearArgs& args;
    const A* activations;  // tiles of quantised rows
    int64_t blocks;        // of a row

    template <int Rows, int Panels>
    void tile(int64_t tile_index, int64_t panel) const {
        const B* weights = static_cast<const B*>(args.panels) + panel * blocks;
        const A* a = activations + tile_index * blocks;
        Floats out[Rows][Panels]{};
        for (int64_t b = 0; b < blocks; ++b) {
            const B* block[Panels];
            UNROLL for (int p = 0; p < Panels; ++p) {
                block[p] = weights + p * blocks + b;
                if (tile_index == 0) prefetch(block[p] + Panels * blocks, sizeof(B));
            }
            UNROLL for (int group = 0; group < B::kGroups; ++group) {
                Sums<Rows, Panels> sums;
                add_group<B, Rows, Panels>(sums, block, a[b], group);
                add_scaled<B, Rows, Panels>(out, sums, block, a[b], group);
            }
        }
        UNROLL for (int row = 0; row < Rows; ++row)
            UNROLL for (int p = 0; p < Panels; ++p)
                store_outputs(args, tile_index * kTileRows + row, panel + p, out[row][p]);
    }

    template <int Panels>
    void tile_of(int64_t rows, int64_t tile_index, int64_t panel) const {
        switch (rows) {
            case 1: return tile<1, Panels>(tile_index, panel);
            case 2: return tile<2, Panels>(tile_index, panel);
            case 3: return tile<3, Panels>(tile_index, panel);
            default: return tile<4, Panels>(tile_index, panel);
        }
    }

    // All rows against two panels at a time, which stay in the first-level cache meanwhile; the rows in slices that
    // stay in the second.
    void panels(int64_t first, int64_t last) const {
        constexpr int64_t kSlice = 64;
        for (int64_t slice = 0; slice < args.rows; slice += kSlice) {
            const int64_t end = slice + kSlice < args.rows ? slice + kSlice : args.rows;
            for (int64_t panel = first; panel < last; panel += 2)
                for (int64_t row = slice; row < end; row += kTileRows) {
                    if (panel + 1 < last) tile_of<2>(end - row, row / kTileRows, panel);
                    else tile_of<1>(end - row, row / kTileRows, panel);
                }
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
    parallel_ranges(panels_of(args), panels_at_a_time(blocks * sizeof(B)),
                    [&](int64_t first, int64_t last) { product.panels(first, last); });
}

}  // namespace

template <class B>
void linear_quantized(const LinearArgs& args) {
    if constexpr (B::kBits == 4)
        if (args.precision == kInt8) return multiply_quantized<B, Narrow>(args);
    multiply_quantized<B, Wide>(args);  // 8-bit weights gain nothing from 8-bit activations
}

template void linear_quantized<Q4_0>(const LinearArgs&);
template void linear_quantized<Q4_1>(const LinearArgs&);
template void linear_quantized<Q8_0>(const LinearArgs&);
template void linear_quantized<Q5_1>(const LinearArgs&);
template void linear_quantized<Q4_K>(const LinearArgs&);
template void linear_quantized<Q5_K>(const LinearArgs&);
template void linear_quantized<Q6_K>(const LinearArgs&);

}  // namespace headrace::HEADRACE_LEVEL
