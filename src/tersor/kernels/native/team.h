// Threads for work of microseconds: the OpenMP team that torch already has.
//
// A thread of ours would have to share its core with torch's own, which spin for a while after each of its operators
// in the hope of the next. Without torch threads are started for each call, as for work of milliseconds.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace tersor {

// GOMP_parallel: function, its argument, threads, flags. GCC's and LLVM's libraries both have it.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline std::atomic<Parallel>& team() {
    static std::atomic<Parallel> found{nullptr};
    return found;
}

// Calls work(first, last) for pieces of [0, count) of `grain` units, each piece once, on whichever thread is free.
template <typename Work>
void take_turns(int64_t count, int64_t grain, int threads, const Work& work) {
    struct Turns {
        const Work& work;
        const int64_t count, grain;
        std::atomic<int64_t> next{0};
        void run() {
            for (int64_t first; (first = next.fetch_add(grain, std::memory_order_relaxed)) < count;)
                work(first, first + grain < count ? first + grain : count);
        }
    } turns{work, count, grain};
    if (threads > (count + grain - 1) / grain) threads = (int)((count + grain - 1) / grain);
    if (threads <= 1) return turns.run();
    if (const Parallel parallel = team().load()) {
        parallel([](void* turns) { static_cast<Turns*>(turns)->run(); }, &turns, (unsigned)threads, 0);
        return;
    }
    std::vector<std::thread> others;
    for (int k = 1; k < threads; ++k) others.emplace_back([&] { turns.run(); });
    turns.run();
    for (std::thread& thread : others) thread.join();
}

}  // namespace tersor
