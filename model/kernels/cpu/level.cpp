// The table of operations of one instruction-set level.
#include "level.h"

#include <type_traits>

#include "products.h"

namespace headrace::HEADRACE_LEVEL {
namespace {

template <class T>
void multiply(const LinearArgs& args, Column<T>) {
    linear_dense<T>(args);
}
template <class B>
void multiply(const LinearArgs& args, B) {
    linear_quantized<B>(args);
}

void linear(const LinearArgs* args) {
    if (args->rows == 0) return;  // a step may have no row whose logits are wanted
    with_kind(args->kind, [&](auto kind) { multiply(*args, kind); });
}

}  // namespace

extern const Operations operations;
const Operations operations = {linear, embed, rms_norm, layer_norm, rotate, activate, store, attention, add, argmax};

}  // namespace headrace::HEADRACE_LEVEL
