// Places between codes as Python sees them: memory by address, which kernels/places.py has checked. Part of module.cpp.
#pragma once

constexpr int64_t PIECE = 1 << 14;  // numbers of a group or more that a thread takes at a time

template <typename Work>
void over_groups(int64_t groups, int64_t width, int threads, const Work& work) {
    if (groups < 0 || width < 1) throw std::invalid_argument("no kernel for such groups");
    nb::gil_scoped_release release;
    if (threads <= 0) threads = (int)std::max(1u, std::thread::hardware_concurrency());
    take_turns(groups, (PIECE + width - 1) / width, threads, work);
}

// value [groups, width] of place [groups, width]; step, offset, zero [groups]; levels 0 … highest, less zero.
void place_values(int64_t groups, int64_t width, uintptr_t place, uintptr_t step, uintptr_t offset, uintptr_t zero,
                  float highest, uintptr_t value, int threads) {
    PlaceJob job{};
    job.width = width, job.highest = highest, job.place = (const float*)place, job.step = (const float*)step;
    job.offset = (const float*)offset, job.zero = (const float*)zero, job.value = (float*)value;
    const auto values = chosen()->places.values;
    over_groups(groups, width, threads, [&](int64_t first, int64_t last) { values(job, first, last); });
}

// What a gradient [groups, width] of the values makes of those of places [groups, width], steps and offsets [groups].
void place_slopes(int64_t groups, int64_t width, uintptr_t gradient, uintptr_t place, uintptr_t step, uintptr_t zero,
                  float highest, uintptr_t for_place, uintptr_t for_step, uintptr_t for_offset, int threads) {
    PlaceJob job{};
    job.width = width, job.highest = highest, job.place = (const float*)place, job.step = (const float*)step;
    job.zero = (const float*)zero, job.gradient = (const float*)gradient, job.for_place = (float*)for_place;
    job.for_step = (float*)for_step, job.for_offset = (float*)for_offset;
    const auto slopes = chosen()->places.slopes;
    over_groups(groups, width, threads, [&](int64_t first, int64_t last) { slopes(job, first, last); });
}
