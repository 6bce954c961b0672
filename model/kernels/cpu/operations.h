// What the library offers: a table of operations per instruction-set level, each of the form `void op(const Args*)`.
//
// The uniform form is what allows a step to be recorded as a list of (operation, arguments) and replayed.
// `model/kernels/cpu/library.py` mirrors these declarations.
#pragma once
#include <cstdint>

namespace headrace {

enum Precision : int64_t { kInt16 = 0, kInt8 = 1 };

// y [rows, out] = x [rows, in] W^T + bias, where W lies in panels of `kind` (`panels.h`).
struct LinearArgs {
    const float* x;
    const void* panels;
    const float* bias;  // or null
    float* y;
    int64_t rows, in, out, kind, precision;
};

// y [rows, columns] = rows `ids` of the packed matrix.
struct EmbedArgs {
    const int64_t* ids;
    const void* panels;
    float* y;
    int64_t rows, columns, kind;
};

// The rows of x [rows, columns] are `stride` floats apart; those of y are adjacent.
struct NormArgs {
    const float* x;
    const float* weight;
    const float* bias;  // of layer norm, or null
    float* y;
    int64_t rows, columns;
    float eps;
};

// x and y are [rows, heads, head_dim]; the rows of x are `stride` floats apart.
struct RotateArgs {
    const float* x;
    const float* cos;
    const float* sin;
    float* y;
    int64_t rows, heads, head_dim, stride;
};

enum Activation : int64_t { kRelu = 0, kGelu = 1, kGeluTanh = 2, kSilu = 3 };

// y [rows, columns] = activation(x); with `gated`, x is [rows, 2 columns] and y = activation(first half) * second half.
struct ActivateArgs {
    const float* x;
    float* y;
    int64_t rows, columns, activation, gated;
};

// What keys and values are held in; integers have a scale for each of them, float [2, num_blocks, groups, block_size].
enum CacheType : int64_t { kFloatCache = 0, kHalfCache = 1, kInt8Cache = 2, kInt16Cache = 3 };

// Writes k and v [rows, groups, head_dim] at `slots` of one layer's cache: keys [num_blocks, groups, head_dim,
// block_size], values [num_blocks, groups, block_size, head_dim].
struct StoreArgs {
    const float* k;
    const float* v;
    void* keys;
    void* values;
    float* scales;
    const int64_t* slots;
    int64_t rows, groups, head_dim, block_size, num_blocks, k_stride, v_stride, type;
};

// One chunk of rows first_row..last_row-1, at positions start.. of the sequence whose blocks are listed.
struct SpanArgs {
    const int64_t* blocks;
    int64_t first_row, last_row, start;
};

// Causal attention of q [rows, heads, head_dim] over the cache. `window` and `softcap` are 0 where there is none.
struct AttentionArgs {
    const float* q;
    const void* keys;
    const void* values;
    const float* scales;
    float* out;
    const SpanArgs* spans;
    int64_t num_spans, heads, groups, head_dim, block_size, num_blocks, window, q_stride, type;
    float scale, softcap;
};

// y [rows, columns] = x * factor + other, where other may be null.
struct AddArgs {
    const float* x;
    const float* other;
    float* y;
    int64_t rows, columns;
    float factor;
};

// y [rows] = the column of the largest number of each row of x [rows, columns], the first of equals; -1 where one is
// not finite.
struct ArgmaxArgs {
    const float* x;
    int64_t* y;
    int64_t rows, columns;
};

struct Operations {
    void (*linear)(const LinearArgs*);
    void (*embed)(const EmbedArgs*);
    void (*rms_norm)(const NormArgs*);
    void (*layer_norm)(const NormArgs*);
    void (*rotate)(const RotateArgs*);
    void (*activate)(const ActivateArgs*);
    void (*store)(const StoreArgs*);
    void (*attention)(const AttentionArgs*);
    void (*add)(const AddArgs*);
    void (*argmax)(const ArgmaxArgs*);
};

}  // namespace headrace
