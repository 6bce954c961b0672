// What the machine can do at most: cycles, fp32 multiply-adds, 8-bit multiply-adds, bytes read. Compiled by `peaks.py`.
#include <immintrin.h>

#include <cstdint>

// Each of these does what its name says `rounds` times; registers are pinned so that nothing is optimised away.

// Ten dependent additions: ten cycles.
extern "C" void cycles_10(int64_t rounds) {
    uint64_t x = 0;
    for (int64_t i = 0; i < rounds; ++i)
        asm volatile("add $1,%0\nadd $1,%0\nadd $1,%0\nadd $1,%0\nadd $1,%0\n"
                     "add $1,%0\nadd $1,%0\nadd $1,%0\nadd $1,%0\nadd $1,%0" : "+r"(x));
}

// Ten vectors of eight multiply-adds.
extern "C" void fma_80(int64_t rounds) {
    __m256 sums[10] = {}, x = _mm256_set1_ps(1.0f);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
        for (auto& sum : sums) asm volatile("vfmadd231ps %1, %1, %0" : "+x"(sum) : "x"(x));
    }
}

// Ten vectors of 32 multiplications of 8 bits, added in pairs.
extern "C" void maddubs_320(int64_t rounds) {
    __m256i results[10] = {}, x = _mm256_set1_epi8(1);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 10
        for (auto& result : results) asm volatile("vpmaddubsw %1, %1, %0" : "=x"(result) : "x"(x));
    }
}

// Reads every byte of memory once; `bytes` is a multiple of 256.
extern "C" void read_all(const char* memory, int64_t bytes) {
    __m256i sums[8] = {};
    for (const char* end = memory + bytes; memory < end; memory += 256) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) sums[i] = _mm256_xor_si256(sums[i], _mm256_loadu_si256((const __m256i*)memory + i));
    }
    for (auto& sum : sums) asm volatile("" : : "x"(sum));
}
