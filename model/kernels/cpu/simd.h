// What a vector of numbers can do: GCC vector extensions, plus the few instructions they cannot express.
//
// Every source that includes this is compiled once per instruction-set level, each in its own namespace
// (HEADRACE_LEVEL), and nothing here may have external linkage: a function compiled for AVX-512 must never be the copy
// that the linker keeps for an older CPU. Hence also no containers or algorithms of the standard library.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#if defined(__AVX2__) || defined(__ARM_NEON)
#define UNROLL _Pragma("GCC unroll 16")  // arrays indexed by the loop then live in registers
#else
#define UNROLL
#endif

namespace headrace::HEADRACE_LEVEL {

constexpr int kLanes = 8;

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
struct Half { uint16_t bits; };   // IEEE binary16
struct Brain { uint16_t bits; };  // bfloat16
#if defined(__aarch64__)
typedef __fp16 Binary16;  // what gcc calls it there
#else
typedef _Float16 Binary16;
#endif
template <class T, int32_t Limit>
struct Integer {  // under a scale that lies elsewhere
    static constexpr float kLimit = Limit;
    T value;
};
using Int8Value = Integer<int8_t, 127>;
using Int16Value = Integer<int16_t, 32767>;

INLINE Floats splat(float value) { return value - Floats{}; }  // minus zero changes nothing, so this only broadcasts
INLINE Ints splat(int32_t value) { return Ints{} + value; }
INLINE Ints lanes() { return Ints{0, 1, 2, 3, 4, 5, 6, 7}; }
INLINE Floats as_floats(Ints bits) { return (Floats)bits; }
INLINE Ints as_bits(Floats value) { return (Ints)value; }
INLINE Floats to_floats(Ints value) { return __builtin_convertvector(value, Floats); }

INLINE Floats load(const float* from) {
    Floats value;
    memcpy(&value, from, sizeof value);
    return value;
}
INLINE Ints load_bits(const void* from) {
    Ints value;
    memcpy(&value, from, sizeof value);
    return value;
}
INLINE void store(float* to, Floats value) { memcpy(to, &value, sizeof value); }

// The first `count` of eight floats; the others read as zero and are not written.
INLINE Floats load_first(const float* from, int64_t count) {
    Floats value{};
    memcpy(&value, from, count * sizeof(float));
    return value;
}
INLINE void store_first(float* to, Floats value, int64_t count) { memcpy(to, &value, count * sizeof(float)); }

// Asks for memory that will be read soon; what lies there may be anything, or nothing.
INLINE void prefetch(const void* from, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
}

// While `bytes` from `here` on are used, asks for those kBytesAhead of them, up to `end`. They are to come into the
// second-level cache, which can wait for more lines at once than the first.
constexpr int64_t kBytesAhead = 4096;
INLINE void stream(const char* here, int64_t bytes, const void* end) {
    if (here + kBytesAhead + bytes > end) return;
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(here + kBytesAhead + i, 0, 2);
}

INLINE Floats choose(Ints condition, Floats yes, Floats no) { return condition ? yes : no; }
INLINE Floats max(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats min(Floats a, Floats b) { return a < b ? a : b; }
INLINE Floats abs(Floats a) { return as_floats(as_bits(a) & 0x7fffffff); }

INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#else
    return a * b + c;  // a software fma costs a hundred times more
#endif
}

// Sums and maxima over lanes: always the same tree, so a row's result does not depend on what surrounds it.
INLINE float sum(Floats v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }
INLINE float max_lane(Floats v) {
    float most = v[0];
    for (int i = 1; i < kLanes; ++i) most = v[i] > most ? v[i] : most;
    return most;
}
INLINE int32_t sum(Ints v) { return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7])); }

// The nearest integer (ties to even) of |x| < 2^22, by the addition that leaves it in the low bits of the mantissa.
INLINE Ints round_to_ints(Floats x) {
    const Floats shift = splat(12582912.0f);  // 1.5 * 2^23
    return as_bits(x + shift) - as_bits(shift);
}

// Eight numbers to and from the 16-bit formats, rounding to nearest even.
INLINE Floats load(const Half* from) {
#if defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else
    Binary16 half[kLanes];
    memcpy(half, from, sizeof half);
    Floats value;
    for (int i = 0; i < kLanes; ++i) value[i] = (float)half[i];
    return value;
#endif
}
INLINE void store(Half* to, Floats value) {
#if defined(__F16C__)
    _mm_storeu_si128((__m128i*)to, _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
#else
    Binary16 half[kLanes];
    for (int i = 0; i < kLanes; ++i) half[i] = (Binary16)value[i];
    memcpy(to, half, sizeof half);
#endif
}
template <class T, int32_t Limit>
INLINE Floats load(const Integer<T, Limit>* from) {
    typedef T Values __attribute__((vector_size(kLanes * sizeof(T))));
    Values values;
    memcpy(&values, from, sizeof values);
    return to_floats(__builtin_convertvector(values, Ints));
}

// One number from and to the formats of memory.
INLINE float as_float(float value) { return value; }
INLINE float as_float(Half value) {
#if defined(__F16C__)
    return _cvtsh_ss(value.bits);
#else
    Binary16 half;
    memcpy(&half, &value, sizeof half);
    return (float)half;
#endif
}
INLINE float as_float(Brain value) {
    const uint32_t bits = uint32_t(value.bits) << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}
INLINE void store_one(float* to, float value) { *to = value; }
INLINE void store_one(Half* to, float value) {
#if defined(__F16C__)
    to->bits = _cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT);
#else
    const Binary16 half = (Binary16)value;
    memcpy(to, &half, sizeof half);
#endif
}
INLINE Floats load(const Brain* from) {
    typedef uint16_t Words __attribute__((vector_size(16)));
    Words words;
    memcpy(&words, &from->bits, sizeof words);
    return as_floats(__builtin_convertvector(words, Ints) << 16);
}

}  // namespace headrace::HEADRACE_LEVEL
