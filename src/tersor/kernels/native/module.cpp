// The Python module: chooses the instruction set, splits the blocks over threads, lets go of the interpreter lock.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#if defined(TERSOR_ARM)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(TERSOR_X86)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include "job.h"
#include "team.h"

namespace tersor {

namespace portable { CodecTable codecs(); LogitTable logits(); FeedbackTable feedback(); ScaleSearch scale_search(); PlaceTable places(); AttentionTable attention(); LinearTable linear(); }
#if defined(TERSOR_X86)
namespace avx2 { CodecTable codecs(); LogitTable logits(); FeedbackTable feedback(); ScaleSearch scale_search(); PlaceTable places(); AttentionTable attention(); LinearTable linear(); }
namespace avx512 { CodecTable codecs(); LogitTable logits(); FeedbackTable feedback(); ScaleSearch scale_search(); PlaceTable places(); AttentionTable attention(); LinearTable linear(); }
namespace avx512vnni { LinearTable linear(); }
#if defined(TERSOR_AMX)
namespace amx { LinearTable linear(); Roofs with_tiles(Roofs roofs); }
#endif
#elif defined(TERSOR_ARM)
namespace dotprod { LinearTable linear(); }
#endif

}  // namespace tersor

namespace nb = nanobind;
using namespace tersor;

namespace {

struct Level {
    std::string name;
    CodecTable table;
    LogitTable logits;
    FeedbackTable feedback;
    ScaleSearch search_scales;
    PlaceTable places;
    AttentionTable attention;
    LinearTable linear;
};

// The same but for products of bytes, for which there is an instruction.
Level with_linear(Level level, const char* name, LinearTable linear) {
    level.name = name, level.linear = linear;
    return level;
}

#if defined(TERSOR_AMX)
// Whether there is a matrix unit for bytes, and the system lets this process use it: its registers are saved on request.
bool may_use_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    constexpr unsigned TILES = 1u << 24, BYTES = 1u << 25;  // of CPUID 7, edx
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;         // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & TILES) || !(d & BYTES)) return false;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
    return false;
#endif
}
#endif

#if defined(TERSOR_ARM)
bool has_dotprod() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#else
    return true;  // every Apple processor that runs macOS
#endif
}
#endif

// What this processor can run, slowest first.
const std::vector<Level>& levels() {
    static const std::vector<Level> found = [] {
        std::vector<Level> list;
        list.push_back({"portable", portable::codecs(), portable::logits(), portable::feedback(), portable::scale_search(), portable::places(), portable::attention(), portable::linear()});
#if defined(TERSOR_X86)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c") && __builtin_cpu_supports("fma"))
            list.push_back({"avx2", avx2::codecs(), avx2::logits(), avx2::feedback(), avx2::scale_search(), avx2::places(), avx2::attention(), avx2::linear()});
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c")) {
            list.push_back({"avx512", avx512::codecs(), avx512::logits(), avx512::feedback(), avx512::scale_search(), avx512::places(), avx512::attention(), avx512::linear()});
            if (__builtin_cpu_supports("avx512vnni")) {
                list.push_back(with_linear(list.back(), "avx512vnni", avx512vnni::linear()));
#if defined(TERSOR_AMX)
                if (may_use_amx()) {
                    list.push_back(with_linear(list.back(), "amx", amx::linear()));
                    list.back().table.roofs = amx::with_tiles(list.back().table.roofs);
                }
#endif
            }
        }
#elif defined(TERSOR_ARM)
        if (has_dotprod()) list.push_back(with_linear(list.back(), "dotprod", dotprod::linear()));
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
    std::atomic<int64_t> next{0};
    on_threads(count, [&] {
        for (int64_t k = next++; k < count; k = next++)
            work(grains * k / count * grain, std::min(blocks, grains * (k + 1) / count * grain));
    });
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
using Targets = nb::ndarray<const int32_t, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

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

// The shortest of `passes` runs of work(first, last) over [0, count) shared by `threads`, in seconds.
template <typename Work>
double shortest(int64_t count, int threads, int passes, const Work& work) {
    double least = std::numeric_limits<double>::infinity();
    for (int pass = 0; pass < passes; ++pass) {
        const auto began = std::chrono::steady_clock::now();
        share_out(count, count / threads, threads, work);
        least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
    }
    return least;
}

// Bytes read in a second from a buffer of about `bytes`, each thread its own part.
double read_rate(int64_t bytes, int threads, int passes) {
    if (threads < 1 || passes < 1 || bytes < 1) throw std::invalid_argument("bytes, threads and passes must be positive");
    nb::gil_scoped_release release;
    constexpr int64_t PAGE = 1 << 21;
    const int64_t share = (bytes / threads + PAGE - 1) / PAGE * PAGE, total = share * threads;
    std::unique_ptr<uint8_t[]> memory(new uint8_t[(size_t)(total + PAGE)]);
    uint8_t* data = memory.get() + (PAGE - (int64_t)((uintptr_t)memory.get() % PAGE)) % PAGE;
#if defined(MADV_HUGEPAGE)
    madvise(data, (size_t)total, MADV_HUGEPAGE);  // the roof of the memory, not of its small pages
#endif
    share_out(total, share, threads, [&](int64_t first, int64_t last) {
        std::memset(data + first, 1, (size_t)(last - first));  // on the thread that reads it: memory is near to who touched it first
    });
    std::atomic<int64_t> seen{0};
    const auto read = chosen()->table.roofs.read;
    const double seconds = shortest(total, threads, passes, [&](int64_t first, int64_t last) { seen += read(data + first, last - first); });
    return seen < 0 ? 0.0 : (double)total / seconds;
}

// Multiply-adds done in a second: of float32 ("floats"), of int8 summed into int32 ("bytes"), or of the unit for int8
// matrices ("tiles"); 0 where there is no such instruction.
double multiply_rate(const std::string& what, int64_t steps, int threads, int passes) {
    if (threads < 1 || passes < 1 || steps < 1) throw std::invalid_argument("steps, threads and passes must be positive");
    const Roofs roofs = chosen()->table.roofs;
    const auto rate = [&](auto multiply, int products) {
        if (!multiply) return 0.0;
        nb::gil_scoped_release release;
        std::atomic<int64_t> seen{0};
        const double seconds = shortest(threads, threads, passes, [&](int64_t, int64_t) { seen += (int64_t)multiply(steps); });
        return (double)products * (double)steps * threads / seconds;
    };
    if (what == "floats") return rate(roofs.multiply_floats, roofs.floats_per_step);
    if (what == "bytes") return rate(roofs.multiply_bytes, roofs.bytes_per_step);
    if (what == "tiles") return rate(roofs.multiply_tiles, roofs.tiles_per_step);
    throw std::invalid_argument("no rate of '" + what + "'; there are floats, bytes, tiles");
}

template <typename T>
nb::ndarray<T, nb::numpy, nb::ndim<1>> vector_of(std::unique_ptr<T[]> memory, int64_t count) {
    T* data = memory.release();
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return nb::ndarray<T, nb::numpy, nb::ndim<1>>(data, {(size_t)count}, owner);
}

#include "bind_attention.h"  // they use the array types and share_out above
#include "bind_feedback.h"
#include "bind_linear.h"
#include "bind_logits.h"
#include "bind_places.h"
#include "bind_scales.h"

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
    m.doc() = "Encoders and decoders of every GGUF format, and comparison of logits: as tersor.kernels.reference defines them.";
    m.def("encode", &encode, nb::arg("name"), nb::arg("x"), nb::arg("importance").none(), nb::arg("search"),
          nb::arg("threads"), nb::arg("limit") = std::numeric_limits<float>::infinity());
    m.def("decode", &decode, nb::arg("name"), nb::arg("data"), nb::arg("columns"), nb::arg("threads"));
    m.def("read_rate", &read_rate, nb::arg("bytes"), nb::arg("threads"), nb::arg("passes"));
    m.def("multiply_rate", &multiply_rate, nb::arg("what"), nb::arg("steps"), nb::arg("threads"), nb::arg("passes"));
    m.def("compare_logits", &compare_logits);
    m.def("token_losses", &token_losses);
    m.def("top_k", &top_k);
    m.def("compare_to_top_k", &compare_to_top_k);
    m.def("settle", &settle);
    m.def("propagate", &propagate);
    m.def("search_scales", &search_scales);
    m.def("place_values", &place_values);
    m.def("place_slopes", &place_slopes);
    m.def("linear", &linear);
    m.def("attend", &attend);
    m.attr("most_width") = MOST_WIDTH;
    m.def("use_team", [](uintptr_t parallel) { team() = (Parallel)parallel; });
    m.def("formats", &names);
    m.def("isa", [] { return chosen()->name; });
    m.def("isa_levels", &level_names);
    m.def("set_isa", [](const std::string& name) { chosen() = &level_named(name); });
}
