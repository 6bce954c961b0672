// x W^T for dense weights of 32 or 16 bits: fp32 sums over the columns in order, for any number of rows.
#include "products.h"

namespace headrace::HEADRACE_LEVEL {
namespace {

// Each output is one chain of fused multiply-adds, so many must be under way at once to hide their latency.
template <class T, int Rows, int Panels>
void tile(const LinearArgs& args, int64_t row, int64_t panel) {
    const Column<T>* weights = static_cast<const Column<T>*>(args.panels) + panel * args.in;
    const float* x = args.x + row * args.in;
    Floats out[Rows][Panels]{};
    for (int64_t k = 0; k < args.in; ++k) {
        Floats w[Panels];
        UNROLL for (int p = 0; p < Panels; ++p) w[p] = load(weights[p * args.in + k].weights);
        UNROLL for (int r = 0; r < Rows; ++r) {
            const Floats value = splat(x[r * args.in + k]);
            UNROLL for (int p = 0; p < Panels; ++p) out[r][p] = fma(w[p], value, out[r][p]);
        }
    }
    UNROLL for (int r = 0; r < Rows; ++r)
        UNROLL for (int p = 0; p < Panels; ++p) store_outputs(args, row + r, panel + p, out[r][p]);
}

// All rows against Panels panels.
template <class T, int Panels>
void panels(const LinearArgs& args, int64_t panel) {
    int64_t row = 0;
    for (; row + 6 <= args.rows; row += 6) tile<T, 6, Panels>(args, row, panel);
    for (; row + 3 <= args.rows; row += 3) tile<T, 3, Panels>(args, row, panel);
    for (; row < args.rows; ++row) tile<T, 1, Panels>(args, row, panel);
}

}  // namespace

template <class T>
void linear_dense(const LinearArgs& args) {
    const int64_t grain = panels_at_a_time(args.in * sizeof(Column<T>));
    parallel_ranges(panels_of(args), grain, [&](int64_t first, int64_t last) {
        for (; first + 2 <= last; first += 2) panels<T, 2>(args, first);
        if (first < last) panels<T, 1>(args, first);
    });
}

template void linear_dense<float>(const LinearArgs&);
template void linear_dense<Half>(const LinearArgs&);
template void linear_dense<Brain>(const LinearArgs&);

}  // namespace headrace::HEADRACE_LEVEL
