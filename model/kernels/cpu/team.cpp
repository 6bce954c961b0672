// Who computes: a persistent team whose workers spin briefly for the next operation, then sleep on a futex.
#include "team.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <mutex>
#include <new>
#include <thread>

namespace headrace {
namespace {

// Spinning bridges the microseconds between two operations of a step. It is short because the cores also serve HTTP:
// a worker that spins in place of the thread it waits for makes everything slower.
constexpr long kSpinNanoseconds = 30'000;

struct Team {
    std::mutex busy;  // held by the caller whose operation is being done
    std::atomic<int> threads{1};
    int started = 1;

    // The operation. Workers may look at it only between `inside` += 1 with `open` seen set, and `inside` -= 1.
    Work work = nullptr;
    void* context = nullptr;
    int units = 0;
    alignas(64) std::atomic<int> next{0};
    alignas(64) std::atomic<bool> open{false};
    std::atomic<int> inside{0};
    alignas(64) std::atomic<int> generation{0};  // counts operations; workers sleep on it
    std::atomic<int> sleepers{0};
};

Team& team() {
    static Team* const instance = new Team;  // never destroyed: workers outlive static destructors
    return *instance;
}

void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

long now_ns() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1'000'000'000L + time.tv_nsec;
}

// Spins until `is_done`, for the spinning time at most.
template <class Condition>
bool spin_until(Condition is_done) {
    const long deadline = now_ns() + kSpinNanoseconds;
    do {
        for (int i = 0; i < 64; ++i) {
            if (is_done()) return true;
            pause_briefly();
        }
    } while (now_ns() < deadline);
    return is_done();
}

void futex(std::atomic<int>& word, int operation, int value) {
    syscall(SYS_futex, reinterpret_cast<int*>(&word), operation | FUTEX_PRIVATE_FLAG, value, nullptr, nullptr, 0);
}

void do_units(Team& t) {
    for (int unit; (unit = t.next.fetch_add(1)) < t.units;) t.work(t.context, unit);
}

void wait_for_operation(Team& t, int seen) {
    if (spin_until([&] { return t.generation.load() != seen; })) return;
    t.sleepers.fetch_add(1);
    while (t.generation.load() == seen) futex(t.generation, FUTEX_WAIT, seen);
    t.sleepers.fetch_sub(1);
}

void serve(Team& t, int index) {
    for (int seen = 0;;) {
        wait_for_operation(t, seen);
        seen = t.generation.load();
        if (index >= t.threads.load()) continue;
        t.inside.fetch_add(1);
        if (t.open.load()) do_units(t);
        t.inside.fetch_sub(1);
    }
}

// A forked child has the memory of the team and none of its workers.
void forget_workers() { new (&team()) Team; }

void start_workers(Team& t, int threads) {
    if (t.started == 1 && threads > 1) pthread_atfork(nullptr, nullptr, forget_workers);
    for (; t.started < threads; ++t.started) std::thread(serve, std::ref(t), t.started).detach();
}

}  // namespace

void set_threads(int threads) {
    Team& t = team();
    const std::lock_guard<std::mutex> guard(t.busy);
    start_workers(t, threads);
    t.threads.store(threads);
}

void run_units(int units, Work work, void* context) {
    Team& t = team();
    const bool is_alone = units == 1 || t.threads.load(std::memory_order_relaxed) == 1 || !t.busy.try_lock();
    if (is_alone) {
        for (int unit = 0; unit < units; ++unit) work(context, unit);
        return;
    }
    t.work = work;
    t.context = context;
    t.units = units;
    t.next.store(0);
    t.open.store(true);
    t.generation.fetch_add(1);
    if (t.sleepers.load() > 0) futex(t.generation, FUTEX_WAKE, INT_MAX);
    do_units(t);
    t.open.store(false);
    // A worker that lost its core keeps us waiting for one unit at most; give it ours rather than spin in its place.
    while (!spin_until([&] { return t.inside.load() == 0; })) std::this_thread::yield();
    t.busy.unlock();
}

void* scratch(long bytes) {
    struct Buffer {
        void* memory = nullptr;
        long size = 0;
        ~Buffer() { free(memory); }
    };
    static thread_local Buffer buffer;
    if (bytes > buffer.size) {
        free(buffer.memory);
        buffer.size = bytes + bytes / 2;
        buffer.memory = aligned_alloc(64, (buffer.size + 63) / 64 * 64);
    }
    return buffer.memory;
}

}  // namespace headrace
