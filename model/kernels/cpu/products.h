// What the products of quantised and dense weights share: how work is cut and how outputs are written.
#pragma once
#include "operations.h"
#include "panels.h"
#include "parallel.h"

namespace headrace::HEADRACE_LEVEL {

constexpr int64_t kValuesWorthSharing = 16384;  // below this a second thread costs more than it saves

template <class B>
void linear_quantized(const LinearArgs& args);
template <class T>
void linear_dense(const LinearArgs& args);

INLINE int64_t panels_of(const LinearArgs& args) { return (args.out + kPanelRows - 1) / kPanelRows; }

// An even number of panels, of about 16 KB: long enough to stream, short enough to share out evenly.
INLINE int64_t panels_at_a_time(int64_t panel_bytes) {
    const int64_t pairs = 16384 / (2 * panel_bytes);
    return pairs > 1 ? 2 * pairs : 2;
}

// Writes one row's outputs of one panel; the last panel may be short.
INLINE void store_outputs(const LinearArgs& args, int64_t row, int64_t panel, Floats value) {
    const int64_t column = panel * kPanelRows, count = args.out - column;
    float* y = args.y + row * args.out + column;
    if (count >= kPanelRows) {
        store(y, args.bias ? value + load(args.bias + column) : value);
    } else {
        store_first(y, args.bias ? value + load_first(args.bias + column, count) : value, count);
    }
}

}  // namespace headrace::HEADRACE_LEVEL
