// The Python module: chooses the instruction set, splits the blocks over threads, lets go of the interpreter lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "job.h"

namespace tersor {

namespace portable { CodecTable codecs(); }
#if defined(TERSOR_X86)
namespace avx2 { CodecTable codecs(); }
namespace avx512 { CodecTable codecs(); }
#endif

}  // namespace tersor

namespace nb = nanobind;
using namespace tersor;

namespace {

struct Level {
    std::string name;
    CodecTable table;
};

// What this processor can run, slowest first.
const std::vector<Level>& levels() {
    static const std::vector<Level> found = [] {
        std::vector<Level> list;
        list.push_back({"portable", portable::codecs()});
#if defined(TERSOR_X86)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c")) list.push_back({"avx2", avx2::codecs()});
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c"))
            list.push_back({"avx512", avx512::codecs()});
#endif
        return list;
    }();
    return found;
}

const Level& level_named(const std::string& name) {
    std::string known;
    for (const Level& level : levels()) {
        if (level.name == name) return level;
        known += (known.empty() ? "" : ", ") + level.name;
    }
    throw std::invalid_argument("no instruction set '" + name + "' on this processor; it has " + known);
}

const Level*& chosen() {
    static const Level* level = [] {
        const char* wanted = std::getenv("TERSOR_ISA");
        return wanted && *wanted ? &level_named(wanted) : &levels().back();
    }();
    return level;
}

const Codec& codec_named(const std::string& name) {
    const CodecTable table = chosen()->table;
    for (int i = 0; i < table.count; ++i)
        if (name == table.begin[i].name) return table.begin[i];
    throw std::invalid_argument("no native kernel for the format '" + name + "'");
}

// Calls work(first, last) on `threads` threads for equal shares of [0, blocks), each a multiple of `grain`.
template <typename Work>
void share_out(int64_t blocks, int64_t grain, int threads, const Work& work) {
    if (threads <= 0) threads = (int)std::max(1u, std::thread::hardware_concurrency());
    const int64_t grains = (blocks + grain - 1) / grain;
    const int64_t count = std::min<int64_t>(threads, grains);
    std::vector<std::thread> others;
    for (int64_t k = 1; k < count; ++k)
        others.emplace_back([&, k] { work(grains * k / count * grain, std::min(blocks, grains * (k + 1) / count * grain)); });
    if (count > 0) work(0, std::min(blocks, grains / count * grain));
    for (std::thread& thread : others) thread.join();
}

constexpr int64_t LEAST = 1 << 14;  // weights worth a thread of their own; also checked and encoded while in the cache

int64_t grain_of(const Codec& codec, int multiple) {
    const int64_t least = LEAST / codec.weights;
    return (least + multiple - 1) / multiple * multiple;
}

std::vector<float> mean_squares(const float* x, int64_t rows, int64_t columns) {
    std::vector<float> means((size_t)rows);
    for (int64_t r = 0; r < rows; ++r) {
        float sum = 0.0f;  // in order: the sum is part of the bytes
        for (int64_t c = 0; c < columns; ++c) sum += x[r * columns + c] * x[r * columns + c];
        means[(size_t)r] = sum / (float)columns;
    }
    return means;
}

using Matrix = nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Packed = nb::ndarray<const uint8_t, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <typename T>
nb::ndarray<T, nb::numpy, nb::ndim<2>> array_of(std::unique_ptr<T[]> memory, int64_t rows, int64_t columns) {
    T* data = memory.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<T, nb::numpy, nb::ndim<2>>(data, {(size_t)rows, (size_t)columns}, owner);
}

auto encode(const std::string& name, Matrix x, std::optional<Vector> importance, const std::string& search, int threads,
            float limit) {
    const Codec& codec = codec_named(name);
    const int64_t rows = (int64_t)x.shape(0), columns = (int64_t)x.shape(1);
    if (columns % codec.weights) throw std::invalid_argument("the columns do not divide into blocks");
    if (importance && (int64_t)importance->shape(0) != columns)
        throw std::invalid_argument("importance needs one value per column");
    if (search != "best" && search != "ggml") throw std::invalid_argument("search must be 'best' or 'ggml'");
    Job job{x.data(), importance ? importance->data() : nullptr, nullptr, columns / codec.weights, search == "best"};
    const int64_t blocks = rows * job.blocks_per_row;
    std::atomic<bool> refused{false};
    std::unique_ptr<uint8_t[]> out(new uint8_t[(size_t)(blocks * codec.bytes)]);
    {
        nb::gil_scoped_release release;
        std::vector<float> means;
        if (codec.uses_row && job.importance && !job.best) {
            means = mean_squares(job.x, rows, columns);
            job.mean_squares = means.data();
        }
        const auto largest = chosen()->table.largest;
        const int64_t chunk = grain_of(codec, codec.tile);
        share_out(blocks, chunk, threads, [&](int64_t first, int64_t last) {
            for (int64_t start = first; start < last && !refused; start += chunk) {
                const int64_t end = std::min(last, start + chunk);
                if (!(largest(job.x + start * codec.weights, (end - start) * codec.weights) <= limit)) refused = true;
                for (int64_t b = start; b < end && !refused; b += codec.tile)
                    codec.encode(job, b, (int)std::min<int64_t>(codec.tile, end - b), out.get() + b * codec.bytes);
            }
        });
    }
    if (refused) throw std::invalid_argument("a weight is NaN or larger than the limit");
    return array_of(std::move(out), rows, job.blocks_per_row * codec.bytes);
}

auto decode(const std::string& name, Packed data, int64_t columns, int threads) {
    const Codec& codec = codec_named(name);
    const int64_t rows = (int64_t)data.shape(0);
    if (columns < 0 || columns % codec.weights || (int64_t)data.shape(1) != columns / codec.weights * codec.bytes)
        throw std::invalid_argument("the bytes of a row do not fit its columns");
    const int64_t blocks = rows * (columns / codec.weights);
    std::unique_ptr<float[]> out(new float[(size_t)(rows * columns)]);
    {
        nb::gil_scoped_release release;
        share_out(blocks, grain_of(codec, 1), threads, [&](int64_t first, int64_t last) {
            codec.decode(data.data() + first * codec.bytes, last - first, out.get() + first * codec.weights);
        });
    }
    return array_of(std::move(out), rows, columns);
}

std::vector<std::string> names() {
    std::vector<std::string> list;
    const CodecTable table = chosen()->table;
    for (int i = 0; i < table.count; ++i) list.emplace_back(table.begin[i].name);
    return list;
}

std::vector<std::string> level_names() {
    std::vector<std::string> list;
    for (const Level& level : levels()) list.push_back(level.name);
    return list;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Encoders and decoders of every GGUF format; same names and results as tersor.kernels.reference.";
    m.def("encode", &encode, nb::arg("name"), nb::arg("x"), nb::arg("importance").none(), nb::arg("search"),
          nb::arg("threads"), nb::arg("limit") = std::numeric_limits<float>::infinity());
    m.def("decode", &decode, nb::arg("name"), nb::arg("data"), nb::arg("columns"), nb::arg("threads"));
    m.def("formats", &names);
    m.def("isa", [] { return chosen()->name; });
    m.def("isa_levels", &level_names);
    m.def("set_isa", [](const std::string& name) { chosen() = &level_named(name); });
}
