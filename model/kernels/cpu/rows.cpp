// What acts on each row by itself: norms, rotary embedding, activations, embedding rows and the cache's writes.
#include "level.h"

#include "activations.h"
#include "math.h"
#include "panels.h"
#include "parallel.h"

namespace headrace::HEADRACE_LEVEL {
namespace {

constexpr float kLargestFloat = __FLT_MAX__;
constexpr int64_t kStoreWork = 8;  // a number of a key has a cache line of its own to wait for

// body(i, count) for the vectors of a row: eight columns from i on, or what is left of them.
template <class Body>
INLINE void each_vector(int64_t columns, const Body& body) {
    int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) body(i, [](const float* from) { return load(from); },
                                                    [](float* to, Floats value) { store(to, value); });
    const int64_t left = columns - i;
    if (left) body(i, [left](const float* from) { return load_first(from, left); },
                   [left](float* to, Floats value) { store_first(to, value, left); });
}

// body(row) for all rows, shared out when there is enough to do.
template <class Body>
INLINE void each_row(int64_t rows, int64_t columns, const Body& body) {
    const int64_t grain = 8192 / columns + 1;
    parallel_ranges(rows, rows <= 2 * grain ? rows : grain, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row) body(row);
    });
}

INLINE Floats activation(Floats x, int64_t kind) {
    switch (kind) {
        case kRelu: return choose(x < 0.0f, splat(0.0f), x);
        case kGelu: return 0.5f * x * (1.0f + erf(x * 0.707106781f));
        case kGeluTanh: return 0.5f * x * (1.0f + tanh(0.797884561f * fma(x * x * x, splat(0.044715f), x)));
        default: return x / (1.0f + exp(-x));
    }
}

template <int64_t Kind>
void activate_rows(const ActivateArgs& args) {
    each_row(args.rows, args.columns, [&](int64_t row) {
        const float* x = args.x + row * args.columns * (args.gated ? 2 : 1);
        float* y = args.y + row * args.columns;
        each_vector(args.columns, [&](int64_t i, auto take, auto put) {
            const Floats value = activation(take(x + i), Kind);
            put(y + i, args.gated ? value * take(x + args.columns + i) : value);
        });
    });
}

// One weight of a block, as the formats' reference rounds it.
template <int Bits, class Scale, class Minimum, int Offset, int Groups>
INLINE float weight_at(const Block<Bits, Scale, Minimum, Offset, Groups>& block, int lane, int column) {
    const int group = column * Groups / kBlockColumns, byte = lane * 4 + column % 4;
    const int quant = Bits == 4 ? block.quants[column % 16 / 4][byte] >> column / 16 * 4 & 15
                                : int8_t(block.quants[column / 4 % Bits][byte]);
    const float value = as_float(block.scale[group].values[lane]) * float(quant - Offset);
    if constexpr (sizeof(Minimum) > 1) return value + as_float(block.minimum[group].values[lane]);
    return value;
}
template <class T>
INLINE float weight_at(const Column<T>& column, int lane, int) {
    return as_float(column.weights[lane]);
}

template <class B>
constexpr int kColumns = kBlockColumns;
template <class T>
constexpr int kColumns<Column<T>> = 1;

// Writes a key or value, whose numbers are to lie `stride` apart, under the scale that the type needs.
template <class T>
INLINE void store_vector(const float* x, int64_t dim, T* to, int64_t stride, float*) {
    for (int64_t i = 0; i < dim; ++i) store_one(to + i * stride, x[i]);
}
template <class T, int32_t Limit>
INLINE void store_vector(const float* x, int64_t dim, Integer<T, Limit>* to, int64_t stride, float* scale) {
    const float magnitude = largest_magnitude(x, dim);
    const float inverse = magnitude > kSmallestMagnitude ? Limit / magnitude : 0.0f;
    for (int64_t i = 0; i < dim; ++i) to[i * stride].value = T(__builtin_nearbyintf(x[i] * inverse));
    *scale = magnitude / Limit;
}

template <class T>
void store_rows(const StoreArgs& args) {
    const int64_t size = args.block_size, dim = args.head_dim, half = args.num_blocks * args.groups * size;
    each_row(args.rows, kStoreWork * args.groups * dim, [&](int64_t row) {
        const int64_t block = args.slots[row] / size, offset = args.slots[row] % size;
        for (int64_t group = 0; group < args.groups; ++group) {
            const int64_t base = (block * args.groups + group) * dim * size;
            T* keys = static_cast<T*>(args.keys) + base + offset;
            T* values = static_cast<T*>(args.values) + base + offset * dim;
            float* scale = args.scales + (block * args.groups + group) * size + offset;
            store_vector(args.k + row * args.k_stride + group * dim, dim, keys, size, scale);
            store_vector(args.v + row * args.v_stride + group * dim, dim, values, 1, scale + half);
        }
    });
}

}  // namespace

void rms_norm(const NormArgs* a) {
    each_row(a->rows, a->columns, [&](int64_t row) {
        const float* x = a->x + row * a->columns;
        float* y = a->y + row * a->columns;
        Floats squares{};
        each_vector(a->columns, [&](int64_t i, auto take, auto) { squares = fma(take(x + i), take(x + i), squares); });
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) / float(a->columns) + a->eps);
        each_vector(a->columns, [&](int64_t i, auto take, auto put) {
            put(y + i, take(x + i) * scale * take(a->weight + i));
        });
    });
}

void layer_norm(const NormArgs* a) {
    each_row(a->rows, a->columns, [&](int64_t row) {
        const float* x = a->x + row * a->columns;
        float* y = a->y + row * a->columns;
        Floats total{}, squares{};
        each_vector(a->columns, [&](int64_t i, auto take, auto) { total += take(x + i); });
        const float mean = sum(total) / float(a->columns);
        int64_t left = a->columns;
        each_vector(a->columns, [&](int64_t i, auto take, auto) {
            const Floats centred = choose(lanes() < int32_t(left < kLanes ? left : kLanes), take(x + i) - mean, Floats{});
            squares = fma(centred, centred, squares);
            left -= kLanes;
        });
        const float scale = 1.0f / __builtin_sqrtf(sum(squares) / float(a->columns) + a->eps);
        each_vector(a->columns, [&](int64_t i, auto take, auto put) {
            const Floats bias = a->bias ? take(a->bias + i) : Floats{};
            put(y + i, fma((take(x + i) - mean) * scale, a->weight ? take(a->weight + i) : splat(1.0f), bias));
        });
    });
}

void rotate(const RotateArgs* a) {
    const int64_t half = a->head_dim / 2;
    each_row(a->rows, a->heads * a->head_dim, [&](int64_t row) {
        const float* cos = a->cos + row * half;
        const float* sin = a->sin + row * half;
        for (int64_t head = 0; head < a->heads; ++head) {
            const float* x = a->x + row * a->stride + head * a->head_dim;
            float* y = a->y + (row * a->heads + head) * a->head_dim;
            each_vector(half, [&](int64_t i, auto take, auto put) {
                const Floats first = take(x + i), second = take(x + half + i), c = take(cos + i), s = take(sin + i);
                put(y + i, first * c - second * s);
                put(y + half + i, second * c + first * s);
            });
        }
    });
}

void activate(const ActivateArgs* a) {
    switch (a->activation) {
        case kRelu: return activate_rows<kRelu>(*a);
        case kGelu: return activate_rows<kGelu>(*a);
        case kGeluTanh: return activate_rows<kGeluTanh>(*a);
        case kSilu: return activate_rows<kSilu>(*a);
    }
}

void add(const AddArgs* a) {
    each_row(a->rows, a->columns, [&](int64_t row) {
        const int64_t base = row * a->columns;
        each_vector(a->columns, [&](int64_t i, auto take, auto put) {
            const Floats other = a->other ? take(a->other + base + i) : Floats{};
            put(a->y + base + i, take(a->x + base + i) * a->factor + other);
        });
    });
}

void argmax(const ArgmaxArgs* a) {
    each_row(a->rows, a->columns, [&](int64_t row) {
        const float* x = a->x + row * a->columns;
        Floats most = splat(-__builtin_inff());
        Ints is_bad{}, place{};
        each_vector(a->columns, [&](int64_t i, auto take, auto) {
            const Floats value = take(x + i);
            is_bad |= !(abs(value) <= kLargestFloat);
            const Ints is_more = (value > most) & (lanes() + int32_t(i) < int32_t(a->columns));
            most = choose(is_more, value, most);
            place = is_more ? lanes() + int32_t(i) : place;
        });
        int best = 0;  // the lane of the largest number, and of equals the first column
        for (int lane = 1; lane < kLanes; ++lane)
            if (most[lane] > most[best] || (most[lane] == most[best] && place[lane] < place[best])) best = lane;
        a->y[row] = sum(is_bad) ? -1 : place[best];
    });
}

void store(const StoreArgs* a) {
    switch (a->type) {
        case kFloatCache: return store_rows<float>(*a);
        case kHalfCache: return store_rows<Half>(*a);
        case kInt8Cache: return store_rows<Int8Value>(*a);
        case kInt16Cache: return store_rows<Int16Value>(*a);
    }
}

void embed(const EmbedArgs* a) {
    with_kind(a->kind, [&](auto kind) {
        using B = decltype(kind);
        const B* panels = static_cast<const B*>(a->panels);
        const int64_t blocks = a->columns / kColumns<B>;
        each_row(a->rows, a->columns, [&](int64_t row) {
            const B* panel = panels + a->ids[row] / kPanelRows * blocks;
            for (int64_t i = 0; i < a->columns; ++i)
                a->y[row * a->columns + i] =
                    weight_at(panel[i / kColumns<B>], int(a->ids[row] % kPanelRows), int(i % kColumns<B>));
        });
    });
}

}  // namespace headrace::HEADRACE_LEVEL
