// Shares the units of a lambda out among the team.
#pragma once
#include "simd.h"
#include "team.h"

namespace headrace::HEADRACE_LEVEL {

// body(unit) for each unit in 0..units-1.
template <class Body>
static inline void parallel(int units, const Body& body) {
    run_units(units, [](void* context, int unit) { (*static_cast<const Body*>(context))(unit); }, (void*)&body);
}

// body(first, last) for ranges that cover 0..items-1, `grain` items each. Nothing at all is fine.
template <class Body>
static inline void parallel_ranges(int64_t items, int64_t grain, const Body& body) {
    if (items == 0) return;
    parallel(int((items + grain - 1) / grain), [&](int unit) {
        const int64_t first = unit * grain;
        body(first, first + grain < items ? first + grain : items);
    });
}

}  // namespace headrace::HEADRACE_LEVEL
