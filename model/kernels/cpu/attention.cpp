// Causal attention over the paged cache, all query heads of a group against the keys and values they share.
//
// The context is cut at fixed positions, every kChunk. A query's softmax over one chunk depends on nothing outside it;
// the chunks are merged in order (Dao et al. 2022). Within a chunk every sum runs in the order of positions, and a
// position that a query may not see adds an exact zero. So a row's bits are the same in prefill, in decode, and however
// the work is shared out.
#include "level.h"
#include "math.h"
#include "parallel.h"

namespace headrace::HEADRACE_LEVEL {
namespace {

constexpr int kChunk = 256;
constexpr int kMaxHeadDim = 512;
constexpr int kMostQueries = 6;  // in flight at once: with two vectors each, as many sums as registers hold
constexpr int kTileQueries = 48;  // that pass over a chunk while it lies in the second-level cache
constexpr float kNothing = -__builtin_inff();

// A softmax in progress: the largest score, the sum of exponentials relative to it, and the weighted sum of values.
struct Softmax {
    float most = kNothing;
    float total = 0.0f;
    float* values;
};

// Takes in what a later chunk found.
INLINE void merge(Softmax& softmax, const Softmax& chunk, int64_t dim) {
    if (chunk.most == kNothing) return;
    const float most = softmax.most > chunk.most ? softmax.most : chunk.most;
    const float before = exp(splat(softmax.most - most))[0], now = exp(splat(chunk.most - most))[0];
    const bool is_first = softmax.most == kNothing;
    for (int64_t i = 0; i < dim; i += kLanes) {
        const Floats old = is_first ? Floats{} : load(softmax.values + i) * before;
        store(softmax.values + i, fma(load(chunk.values + i), splat(now), old));
    }
    softmax.total = (is_first ? 0.0f : softmax.total * before) + chunk.total * now;
    softmax.most = most;
}

// One query head of one row, and the positions it sees.
struct Query {
    const float* q = nullptr;
    int64_t first = 0, last = 0;
};

// One group's keys and values of one sequence.
template <class T>
struct Context {
    const AttentionArgs& args;
    const int64_t* blocks;
    int64_t group;

    int64_t base(int64_t position) const {
        return (blocks[position / args.block_size] * args.groups + group) * args.head_dim * args.block_size;
    }
    const T* keys(int64_t position) const {
        return static_cast<const T*>(args.keys) + base(position) + position % args.block_size;
    }
    const T* values(int64_t position) const {
        return static_cast<const T*>(args.values) + base(position) + position % args.block_size * args.head_dim;
    }
    // The scales of integer keys from `position` on, up to the end of its block.
    const float* key_scales(int64_t position) const {
        return args.scales + (blocks[position / args.block_size] * args.groups + group) * args.block_size +
               position % args.block_size;
    }
    const float* value_scales(int64_t position) const {
        return key_scales(position) + args.num_blocks * args.groups * args.block_size;
    }
};

template <class T>
constexpr bool kIsScaled = false;
template <class T, int32_t Limit>
constexpr bool kIsScaled<Integer<T, Limit>> = true;

template <int Queries>
using Scores = float (&)[Queries][kChunk];

// Scores of the positions from..to of the chunk that starts at `chunk`, sixteen at a time; unseen ones are -infinity.
template <int Queries, class T>
INLINE void score(const Context<T>& context, const Query* queries, int64_t chunk, int64_t from, int64_t to,
                  Scores<Queries> scores) {
    const AttentionArgs& args = context.args;
    for (int64_t position = from / 16 * 16; position < to; position += 16) {
        const T* keys = context.keys(position);
        const T* next = context.keys(position + 16 < to ? position + 16 : from);
        Floats sums[Queries][2]{};
        for (int64_t i = 0; i < args.head_dim; ++i, keys += args.block_size, next += args.block_size) {
            prefetch(next, 16 * sizeof(T));
            const Floats low = load(keys), high = load(keys + kLanes);
            UNROLL for (int n = 0; n < Queries; ++n) {
                const Floats q = splat(queries[n].q[i]);
                sums[n][0] = fma(low, q, sums[n][0]);
                sums[n][1] = fma(high, q, sums[n][1]);
            }
        }
        UNROLL for (int n = 0; n < Queries; ++n)
            UNROLL for (int half = 0; half < 2; ++half) {
                const int64_t start = position + half * kLanes;
                Floats value = sums[n][half] * args.scale;
                if constexpr (kIsScaled<T>) value *= load(context.key_scales(start));
                if (args.softcap > 0.0f) value = tanh(value / args.softcap) * args.softcap;
                const Ints unseen = (lanes() < int32_t(queries[n].first - start)) | (lanes() >= int32_t(queries[n].last - start));
                store(scores[n] + (start - chunk), choose(unseen, splat(kNothing), value));
            }
    }
}

// Turns scores into their exponentials relative to the largest, and sums those.
INLINE void normalize(float* scores, int64_t count, Softmax& softmax) {
    Floats most = splat(kNothing), total{};
    for (int64_t i = 0; i < count; i += kLanes) most = max(load(scores + i), most);
    softmax.most = max_lane(most);
    const float base = softmax.most == kNothing ? 0.0f : softmax.most;
    for (int64_t i = 0; i < count; i += kLanes) {
        const Floats weight = exp(load(scores + i) - base);
        store(scores + i, weight);
        total += weight;
    }
    softmax.total = sum(total);
}

// Multiplies weights with the scales of the values that they are for.
template <class T>
INLINE void scale_weights(const Context<T>& context, int64_t chunk, int64_t from, int64_t to, float* weights) {
    for (int64_t position = from / kLanes * kLanes; position < to; position += kLanes) {
        float* at = weights + (position - chunk);
        store(at, load(at) * load(context.value_scales(position)));
    }
}

// Weighted sums of values, `Vectors` vectors of dimensions from `dim` on.
template <int Queries, int Vectors, class T>
INLINE void weigh(const Context<T>& context, int64_t chunk, int64_t from, int64_t to, Scores<Queries> scores,
                  int64_t dim, Softmax* softmax) {
    const AttentionArgs& args = context.args;
    Floats sums[Queries][Vectors]{};
    for (int64_t position = from; position < to;) {
        const T* values = context.values(position) + dim;
        const int64_t block_end = (position / args.block_size + 1) * args.block_size;
        const T* next = context.values(block_end < to ? block_end : from) + dim;
        for (const int64_t end = block_end < to ? block_end : to; position < end; ++position) {
            prefetch(next, Vectors * kLanes * sizeof(T));
            Floats v[Vectors];
            UNROLL for (int i = 0; i < Vectors; ++i) v[i] = load(values + i * kLanes);
            UNROLL for (int n = 0; n < Queries; ++n) {
                const Floats weight = splat(scores[n][position - chunk]);
                UNROLL for (int i = 0; i < Vectors; ++i) sums[n][i] = fma(v[i], weight, sums[n][i]);
            }
            values += args.head_dim;
            next += args.head_dim;
        }
    }
    UNROLL for (int n = 0; n < Queries; ++n)
        UNROLL for (int i = 0; i < Vectors; ++i) store(softmax[n].values + dim + i * kLanes, sums[n][i]);
}

// The softmax of some queries over one chunk.
template <int Queries, class T>
void attend(const Context<T>& context, const Query* queries, int64_t chunk, Softmax* softmax) {
    const int64_t dim = context.args.head_dim;
    int64_t from = chunk + kChunk, to = chunk;  // what any of them sees
    for (int n = 0; n < Queries; ++n) {
        from = queries[n].first < from ? queries[n].first : from;
        to = queries[n].last > to ? queries[n].last : to;
    }
    from = from > chunk ? from : chunk;
    to = to < chunk + kChunk ? to : chunk + kChunk;
    if (from >= to) return;

    alignas(32) float scores[Queries][kChunk];
    score<Queries>(context, queries, chunk, from, to, scores);
    const int64_t start = (from - chunk) / 16 * 16, count = (to - chunk + 15) / 16 * 16 - start;
    for (int n = 0; n < Queries; ++n) {
        normalize(scores[n] + start, count, softmax[n]);
        if constexpr (kIsScaled<T>) scale_weights(context, chunk, from, to, scores[n]);
    }

    constexpr int kVectors = Queries <= 3 ? 4 : 2;
    int64_t i = 0;
    for (; i + kVectors * kLanes <= dim; i += kVectors * kLanes)
        weigh<Queries, kVectors>(context, chunk, from, to, scores, i, softmax);
    for (; i < dim; i += kLanes) weigh<Queries, 1>(context, chunk, from, to, scores, i, softmax);
}

template <class T>
void attend_some(int queries, const Context<T>& context, const Query* query, int64_t chunk, Softmax* softmax) {
    switch (queries) {
        case 1: return attend<1>(context, query, chunk, softmax);
        case 2: return attend<2>(context, query, chunk, softmax);
        case 3: return attend<3>(context, query, chunk, softmax);
        default: return attend<6>(context, query, chunk, softmax);
    }
}

// How many of the queries that are left to take at once: a number that `attend_some` knows.
INLINE int some_of(int64_t left) { return left >= 6 ? 6 : left >= 3 ? 3 : int(left); }

// Some query heads of one span and one group, counted row by row: what one thread does at a time.
struct Tile {
    const SpanArgs* span;
    int64_t first, last, group;
};

struct Tiling {
    const AttentionArgs& args;
    int64_t heads;  // of a group
    int64_t count;

    explicit Tiling(const AttentionArgs& args) : args(args), heads(args.heads / args.groups), count(0) {
        for (int64_t i = 0; i < args.num_spans; ++i) count += tiles_of(args.spans[i]);
    }
    int64_t queries_of(const SpanArgs& span) const { return (span.last_row - span.first_row) * heads; }
    int64_t tiles_of(const SpanArgs& span) const {
        return (queries_of(span) + kTileQueries - 1) / kTileQueries * args.groups;
    }
    Tile at(int64_t index) const {
        const SpanArgs* span = args.spans;
        for (; index >= tiles_of(*span); ++span) index -= tiles_of(*span);
        const int64_t first = index / args.groups * kTileQueries, end = queries_of(*span);
        return {span, first, first + kTileQueries < end ? first + kTileQueries : end, index % args.groups};
    }
    // Where query `n` of the tile's span reads, writes, and looks.
    Query query(const Tile& tile, int64_t n, float** out) const {
        const int64_t row = tile.span->first_row + n / heads, head = tile.group * heads + n % heads;
        const int64_t last = tile.span->start + n / heads + 1;
        *out = args.out + (row * args.heads + head) * args.head_dim;
        const int64_t first = args.window && last > args.window ? last - args.window : 0;
        return {args.q + row * args.q_stride + head * args.head_dim, first, last};
    }
};

template <class T>
void attend_tile(const Tiling& tiling, const Tile& tile) {
    const AttentionArgs& args = tiling.args;
    const Context<T> context{args, tile.span->blocks, tile.group};
    const int64_t count = tile.last - tile.first;
    Query queries[kTileQueries];
    Softmax softmax[kTileQueries];
    for (int64_t n = 0; n < count; ++n) queries[n] = tiling.query(tile, tile.first + n, &softmax[n].values);

    alignas(32) float chunk_values[kMostQueries][kMaxHeadDim];
    for (int64_t chunk = queries[0].first / kChunk * kChunk; chunk < queries[count - 1].last; chunk += kChunk)
        for (int64_t done = 0, some; done < count; done += some) {
            some = some_of(count - done);
            Softmax found[kMostQueries];
            for (int n = 0; n < some; ++n) found[n].values = chunk_values[n];
            attend_some(int(some), context, queries + done, chunk, found);
            for (int n = 0; n < some; ++n) merge(softmax[done + n], found[n], args.head_dim);
        }
    for (int64_t n = 0; n < count; ++n)
        for (int64_t i = 0; i < args.head_dim; i += kLanes)
            store(softmax[n].values + i, load(softmax[n].values + i) / softmax[n].total);
}

template <class T>
void attend_all(const AttentionArgs& args) {
    const Tiling tiling(args);
    parallel(int(tiling.count), [&](int unit) { attend_tile<T>(tiling, tiling.at(unit)); });
}

}  // namespace

void attention(const AttentionArgs* args) {
    switch (args->type) {
        case kFloatCache: return attend_all<float>(*args);
        case kHalfCache: return attend_all<Half>(*args);
        case kInt8Cache: return attend_all<Int8Value>(*args);
        case kInt16Cache: return attend_all<Int16Value>(*args);
    }
}

}  // namespace headrace::HEADRACE_LEVEL
