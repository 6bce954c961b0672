// What a product's vectors can do. They are as wide as the level's registers: a panel's rows are the lanes of one or two.
#pragma once
#include "panels.h"

namespace headrace::HEADRACE_LEVEL {

#if defined(__AVX512VNNI__)
constexpr int kRowLanes = 16;
typedef float RowFloats __attribute__((vector_size(64)));
typedef int32_t RowInts __attribute__((vector_size(64)));
#else
constexpr int kRowLanes = kLanes;
typedef Floats RowFloats;
typedef Ints RowInts;
#endif
constexpr int kVectors = kPanelRows / kRowLanes;  // of a panel

INLINE RowInts all_lanes(int32_t value) { return RowInts{} + value; }
INLINE RowFloats all_lanes(float value) { return value - RowFloats{}; }
INLINE RowFloats to_row_floats(RowInts value) { return __builtin_convertvector(value, RowFloats); }

INLINE RowInts load_line(const uint8_t* from) {
    RowInts value;
    memcpy(&value, from, sizeof value);
    return value;
}

// Vector v of one number per row, as floats.
INLINE RowFloats load_rows(const float* rows, int v) {
    RowFloats value;
    memcpy(&value, rows + v * kRowLanes, sizeof value);
    return value;
}
template <class T>
INLINE RowFloats load_rows(const PerRow<T>& rows, int v) {
    return load_rows(rows.values, v);
}
INLINE RowFloats load_rows(const Nothing&, int) { return RowFloats{}; }

#if defined(__AVX512VNNI__)
INLINE RowFloats load_rows(const Half* rows, int) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)rows)); }
INLINE RowFloats load_rows(const Brain* rows, int) {
    return (RowFloats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)rows)), 16);
}
INLINE RowFloats fma(RowFloats a, RowFloats b, RowFloats c) { return _mm512_fmadd_ps(a, b, c); }
INLINE void store(float* to, RowFloats value) { memcpy(to, &value, sizeof value); }
#else
INLINE RowFloats load_rows(const Half* rows, int v) { return load(rows + v * kRowLanes); }
INLINE RowFloats load_rows(const Brain* rows, int v) { return load(rows + v * kRowLanes); }
#endif

#if defined(__ARM_FEATURE_DOTPROD)
// What NEON does to each half of a vector, which takes two of its registers.
template <class Work>
INLINE RowInts by_halves(RowInts value, const Work& work) {
    int32x4_t parts[2];
    memcpy(parts, &value, sizeof parts);
    for (int32x4_t& part : parts) part = work(part);
    memcpy(&value, parts, sizeof parts);
    return value;
}
#endif

// acc + w0 a0 + w1 a1 in each lane, where a lane of w holds two int16 and `a` is such a pair.
INLINE RowInts dot2(RowInts acc, RowInts w, int32_t a) {
#if defined(__AVX512VNNI__)
    return (RowInts)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#elif defined(__AVX2__)
    return acc + (RowInts)_mm256_madd_epi16((__m256i)w, _mm256_set1_epi32(a));
#elif defined(__ARM_FEATURE_DOTPROD)
    const int16x8_t pair = vreinterpretq_s16_s32(vdupq_n_s32(a));
    return acc + by_halves(w, [&](int32x4_t half) {
        const int16x8_t words = vreinterpretq_s16_s32(half);
        return vpaddq_s32(vmull_s16(vget_low_s16(words), vget_low_s16(pair)), vmull_high_s16(words, pair));
    });
#else
    return acc + (w << 16 >> 16) * int32_t(int16_t(a)) + (w >> 16) * (a >> 16);
#endif
}

// acc + four products in each lane, where a lane of w holds four nibbles in bytes and `a` is four int8. Up to eight may
// be added up before `quads_total`: the 16-bit halves of AVX2's sums then stay below 8 * 2 * 15 * 127 = 30480.
INLINE RowInts quads_add(RowInts acc, RowInts w, int32_t a) {
#if defined(__AVX512VNNI__)
    return (RowInts)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(a));
#elif defined(__AVX2__)
    return (RowInts)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(a)));
#elif defined(__ARM_FEATURE_DOTPROD)
    const int8x16_t quad = vreinterpretq_s8_s32(vdupq_n_s32(a));
    return acc + by_halves(w, [&](int32x4_t half) {
        return vdotq_s32(vdupq_n_s32(0), vreinterpretq_s8_s32(half), quad);
    });
#else
    for (int byte = 0; byte < 32; byte += 8) acc += (w << (24 - byte) >> 24) * int32_t(int8_t(a >> byte));
    return acc;
#endif
}
INLINE RowInts quads_total(RowInts acc) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
    return (RowInts)_mm256_madd_epi16((__m256i)acc, _mm256_set1_epi16(1));
#else
    return acc;
#endif
}

// Makes gcc compute a sum of products here: it would move the loads forward until it runs out of registers.
INLINE void settle([[maybe_unused]] RowInts& sum) {
#if defined(__AVX512VNNI__)
    asm volatile("" : "+v"(sum));
#elif defined(__AVX2__)
    asm volatile("" : "+x"(sum));
#endif
}

}  // namespace headrace::HEADRACE_LEVEL
