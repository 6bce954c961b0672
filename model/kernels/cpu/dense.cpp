// x W^T for dense weights of 32 or 16 bits: fp32 sums over the columns in order, for any number of rows.
#include "products.h"

namespace headrace::HEADRACE_LEVEL {
namespace {

// Each output is one chain of fused multiply-adds, so many must be under way at once to hide their latency.
template <class T, int Rows>
void tile(const LinearArgs& args, int64_t row, int64_t panel) {
    const Column<T>* weights = static_cast<const Column<T>*>(args.panels) + panel * args.in;
    const float* x = args.x + row * args.in;
    RowFloats out[Rows][kVectors]{};
    for (int64_t k = 0; k < args.in; ++k) {
        RowFloats w[kVectors];
        UNROLL for (int v = 0; v < kVectors; ++v) w[v] = load_rows(weights[k].weights, v);
        UNROLL for (int r = 0; r < Rows; ++r)
            UNROLL for (int v = 0; v < kVectors; ++v) out[r][v] = fma(w[v], all_lanes(x[r * args.in + k]), out[r][v]);
    }
    UNROLL for (int r = 0; r < Rows; ++r)
        UNROLL for (int v = 0; v < kVectors; ++v) store_outputs(args, row + r, panel, v, out[r][v]);
}

template <class T>
void all_rows(const LinearArgs& args, int64_t panel) {
    int64_t row = 0;
    if constexpr (kVectors == 1)
        for (; row + 12 <= args.rows; row += 12) tile<T, 12>(args, row, panel);
    for (; row + 6 <= args.rows; row += 6) tile<T, 6>(args, row, panel);
    for (; row + 3 <= args.rows; row += 3) tile<T, 3>(args, row, panel);
    for (; row < args.rows; ++row) tile<T, 1>(args, row, panel);
}

}  // namespace

template <class T>
void linear_dense(const LinearArgs& args) {
    const int64_t grain = panels_at_a_time(args, args.in * sizeof(Column<T>));
    parallel_ranges(panels_of(args), grain, [&](int64_t first, int64_t last) {
        for (; first < last; ++first) all_rows<T>(args, first);
    });
}

template void linear_dense<float>(const LinearArgs&);
template void linear_dense<Half>(const LinearArgs&);
template void linear_dense<Brain>(const LinearArgs&);

}  // namespace headrace::HEADRACE_LEVEL
