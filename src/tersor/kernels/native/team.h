// Threads for work of microseconds: the OpenMP team that torch already has.
//
// A thread of ours would have to share its core with torch's own, which spin for a while after each of its operators
// in the hope of the next. Without torch threads are started for each call, as for work of milliseconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace tersor {

// GOMP_parallel: function, its argument, threads, flags. GCC's and LLVM's libraries both have it.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline std::atomic<Parallel>& team() {
    static std::atomic<Parallel> found{nullptr};
    return found;
}

// Scratch that a thread keeps for its next call; that of a long prompt is given back.
template <typename T>
struct Scratch {
    static constexpr size_t MOST = size_t{64} << 20;  // bytes; what fills more takes milliseconds anyway
    std::vector<T>& memory;
    explicit Scratch(std::vector<T>& kept, size_t count) : memory(kept) { memory.resize(count); }
    ~Scratch() {
        if (memory.capacity() * sizeof(T) > MOST) std::vector<T>().swap(memory);
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
};

// Calls run() on as many threads, this one among them, as the system gives up to `threads`: it must share its work out
// by itself, so that fewer do all of it.
template <typename Run>
void on_threads(int64_t threads, const Run& run) {
    std::vector<std::thread> others;
    try {
        others.reserve((size_t)(threads > 1 ? threads - 1 : 0));
        for (int64_t k = 1; k < threads; ++k) others.emplace_back([&] { run(); });
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
    run();
    for (std::thread& thread : others) thread.join();
}

// Calls work(first, last) for pieces of [0, count), each once, on whichever thread is free. A piece is half of what would
// be left for each thread, in multiples of `grain` units: long streams at first, and in the end nobody waits for long.
template <typename Work>
void take_turns(int64_t count, int64_t grain, int threads, const Work& work) {
    struct Turns {
        const Work& work;
        const int64_t count, grain, shares;
        std::atomic<int64_t> next{0};
        void run() {
            for (int64_t first = next.load(std::memory_order_relaxed); first < count;) {
                const int64_t piece = (count - first) / shares / grain * grain, last = first + (piece > grain ? piece : grain);
                if (!next.compare_exchange_weak(first, last, std::memory_order_relaxed)) continue;
                work(first, last < count ? last : count);
                first = next.load(std::memory_order_relaxed);
            }
        }
    } turns{work, count, grain, 2 * (int64_t)(threads > 1 ? threads : 1)};
    if (threads > (count + grain - 1) / grain) threads = (int)((count + grain - 1) / grain);
    if (threads <= 1) return work(0, count);
    if (const Parallel parallel = team().load()) {
        parallel([](void* turns) { static_cast<Turns*>(turns)->run(); }, &turns, (unsigned)threads, 0);
        return;
    }
    on_threads(threads, [&] { turns.run(); });
}

}  // namespace tersor
