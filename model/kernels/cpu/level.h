// The operations that `rows.cpp` and `attention.cpp` define at each level.
#pragma once
#include "operations.h"
#include "simd.h"

namespace headrace::HEADRACE_LEVEL {

void embed(const EmbedArgs* args);
void rms_norm(const NormArgs* args);
void layer_norm(const NormArgs* args);
void rotate(const RotateArgs* args);
void activate(const ActivateArgs* args);
void store(const StoreArgs* args);
void attention(const AttentionArgs* args);
void argmax(const ArgmaxArgs* args);
void add(const AddArgs* args);

}  // namespace headrace::HEADRACE_LEVEL
