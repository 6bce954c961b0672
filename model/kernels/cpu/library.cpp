// The library's surface: which levels this processor can run, and the team.
#include <cstring>
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include "operations.h"
#include "team.h"

namespace headrace {

namespace portable {
extern const Operations operations;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Operations operations;
}
namespace avx512 {
extern const Operations operations;
}
#elif defined(__aarch64__)
namespace neon {
extern const Operations operations;
}
#endif

namespace {

struct Level {
    const char* name;
    const Operations* operations;
    bool is_supported;
};

const Operations* find(const char* name) {
    const Level levels[] = {
#if defined(__x86_64__)
        {"avx512", &avx512::operations,
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c")},
        {"avx2", &avx2::operations,
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#elif defined(__aarch64__)
        {"neon", &neon::operations, (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) && (getauxval(AT_HWCAP) & HWCAP_FPHP)},
#endif
        {"portable", &portable::operations, true},
    };
    for (const Level& level : levels)
        if (level.is_supported && (!*name || !strcmp(level.name, name))) return level.operations;
    return nullptr;
}

}  // namespace
}  // namespace headrace

// The operations of the named level, or of the best one for "". Null if this processor cannot run it.
extern "C" __attribute__((visibility("default"))) const headrace::Operations* headrace_operations(const char* level) {
    return headrace::find(level);
}

// How many threads take part in an operation from now on.
extern "C" __attribute__((visibility("default"))) void headrace_set_threads(int threads) {
    headrace::set_threads(threads);
}
