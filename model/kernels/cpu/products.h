// What the products of quantised and dense weights share: how work is cut and how outputs are written.
#pragma once
#include "lanes.h"
#include "operations.h"
#include "parallel.h"

namespace headrace::HEADRACE_LEVEL {

constexpr int64_t kValuesWorthSharing = 16384;  // below this a second thread costs more than it saves

template <class B>
void linear_quantized(const LinearArgs& args);
template <class T>
void linear_dense(const LinearArgs& args);

INLINE int64_t panels_of(const LinearArgs& args) { return (args.out + kPanelRows - 1) / kPanelRows; }

// How many panels a thread takes at a time: enough bytes to stream where few rows leave memory as the limit, and few
// enough to share out evenly.
INLINE int64_t panels_at_a_time(const LinearArgs& args, int64_t panel_bytes) {
    const int64_t bytes = 65536 / (args.rows < 4 ? args.rows : 4);
    return panel_bytes < bytes ? bytes / panel_bytes : 1;
}

// Writes one row's outputs of vector v of a panel; the last panel may be short.
INLINE void store_outputs(const LinearArgs& args, int64_t row, int64_t panel, int v, RowFloats value) {
    const int64_t column = panel * kPanelRows + v * kRowLanes, count = args.out - column;
    if (count <= 0) return;
    const int64_t bytes = (count < kRowLanes ? count : kRowLanes) * sizeof(float);
    float* y = args.y + row * args.out + column;
    if (args.bias) {
        RowFloats bias{};
        memcpy(&bias, args.bias + column, bytes);
        value += bias;
    }
    if (count >= kRowLanes) return store(y, value);
    memcpy(y, &value, bytes);
}

}  // namespace headrace::HEADRACE_LEVEL
