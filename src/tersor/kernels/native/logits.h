// What rows of logits say about the next token: losses, divergence, likeliest tokens.
//
// Three passes over a pair of rows that stays in the cache: the largest logits, the sums of exponentials, the
// divergence. LaneSums run in 16 lanes of doubles whatever the vector width is, so that all instruction sets agree.
//
// The divergence is Σ p·log(p/q) - p + q, whose terms are ≥ 0 and of second order in r = log q - log p: an error of 1e-7
// in an exponential is one of 1e-7 of the result, where in Σ p·log(p/q) it would be one of 1e-7 nats.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "job.h"
#include "lanes.h"

namespace tersor::TERSOR_ISA {

typedef float vh __attribute__((vector_size(W * 2)));
typedef double vd __attribute__((vector_size(W * 4)));

constexpr float LOWEST = -std::numeric_limits<float>::max();
constexpr float NONE = -std::numeric_limits<float>::infinity();
constexpr int LANES = 16, PARTS = LANES / W;

// The last elements of a row, filled up with `fill`.
inline void load_rest(const float* from, int64_t count, float fill, float* out) {
    for (int k = 0; k < LANES; ++k) out[k] = k < count ? from[k] : fill;
}

// Calls work(part, vector…) for vectors of up to two rows; element 16·i + k goes to lane k % W of part k / W.
template <typename Work>
inline void over(const float* a, const float* b, int64_t count, float fill, const Work& work) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (int part = 0; part < PARTS; ++part) work(part, load(a + i + part * W), load(b + i + part * W));
    if (i == count) return;
    float rest_a[LANES], rest_b[LANES];
    load_rest(a + i, count - i, fill, rest_a);
    load_rest(b + i, count - i, fill, rest_b);
    for (int part = 0; part < PARTS; ++part) work(part, load(rest_a + part * W), load(rest_b + part * W));
}

// LANES sums in doubles.
struct LaneSums {
    vd lanes[2 * PARTS] = {};

    void add(int part, vf v) {
        vh halves[2];
        std::memcpy(halves, &v, sizeof v);
        lanes[2 * part] += __builtin_convertvector(halves[0], vd);
        lanes[2 * part + 1] += __builtin_convertvector(halves[1], vd);
    }

    double total() const {
        double each[LANES], sum = 0;
        std::memcpy(each, lanes, sizeof each);
        for (double lane : each) sum += lane;
        return sum;
    }
};

// e^v for v ≤ 0, split as 2^n·(1 + t + t²·tail) with |t| ≤ log(2)/2; 1e-7 relative, 0 below e^-87.
struct Exponential {
    vf value, power, t, tail;
    vi is_near;  // n = 0, so that t = v
};

inline Exponential exponential(vf v) {
    const vf bounded = larger(v, splat(-88.0f));
    const vf n = round_even(bounded * 1.44269504f);
    const vf t = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;  // log 2 in two parts: n times the first is exact
    vf tail = t * 1.9841270e-4f + 1.3888889e-3f;
    tail = tail * t + 8.3333333e-3f;
    tail = tail * t + 4.1666668e-2f;
    tail = tail * t + 1.6666667e-1f;
    tail = tail * t + 0.5f;
    vf power = bits_to_float((to_int(n) + 127) << 23);
    power = choose(v < -87.0f, splat(0.0f), power);
    return {power * ((tail * t * t + t) + 1.0f), power, t, tail, n == 0.0f};
}

// log Σ exp of a row: `high` rounded to float, `low` what is missing.
struct LogSum {
    float high, low;
    double exact() const { return (double)high + (double)low; }
};

// Not inlined: GCC 12, with two of these side by side and -fno-trapping-math, turns the conversions of both into one of
// a vector and then drops the rounding of `high` to float.
__attribute__((noinline)) static LogSum log_sum(float largest, double sum) {
    const double log = std::log(sum);
    const float high = (float)((double)largest + log);
    return {high, (float)(((double)largest - (double)high) + log)};
}

inline vf log_probability(vf x, LogSum sum) { return larger((x - sum.high) - sum.low, splat(LOWEST)); }

// p·log(p/q) - p + q: with w = -|log q - log p| it is p·(e^w - 1 - w) where q is smaller, q·(1 - e^w·(1 - w)) where p is.
inline vf divergence_terms(vf log_p, vf log_q) {
    const vi is_smaller = log_q < log_p;
    const vf w = choose(is_smaller, log_q - log_p, log_p - log_q);
    const Exponential e = exponential(w);
    const vf square = w * w;
    const vf below = choose(e.is_near, square * e.tail, (e.value - 1.0f) - w);
    const vf above = choose(e.is_near, square * (1.0f - e.tail * (1.0f - w)), 1.0f - e.value * (1.0f - larger(w, splat(-100.0f))));
    const Exponential likelier = exponential(choose(is_smaller, log_p, log_q));
    const vf terms = likelier.value * choose(is_smaller, below, above);
    return choose(likelier.power == 0.0f, splat(0.0f), terms);
}

// The five likeliest tokens, likeliest first, of equals the first; -1 where the row has fewer.
struct Top {
    float values[5];
    int64_t ids[5];

    void offer(float value, int64_t id) {
        if (ids[4] >= 0 && !(value > values[4])) return;
        int place = 4;
        while (place > 0 && (ids[place - 1] < 0 || value > values[place - 1])) {
            values[place] = values[place - 1];
            ids[place] = ids[place - 1];
            --place;
        }
        values[place] = value;
        ids[place] = id;
    }
};

constexpr int64_t STRETCH = 512;  // logits whose largest is remembered

inline float largest_lane(const vf* parts) {
    float lanes[LANES];
    std::memcpy(lanes, parts, sizeof lanes);
    float largest = NONE;
    for (float lane : lanes) largest = lane > largest ? lane : largest;
    return largest;
}

// The likeliest tokens of a row; false if a logit is NaN or +inf or all are -inf.
// Whatever is among the five likeliest lies in one of the five stretches with the largest maxima.
inline bool find_top(const float* x, int64_t count, Top& top) {
    Top stretches{{NONE, NONE, NONE, NONE, NONE}, {-1, -1, -1, -1, -1}};
    vi bad[PARTS] = {};
    for (int64_t start = 0; start < count; start += STRETCH) {
        vf largest[PARTS];
        for (vf& part : largest) part = splat(NONE);
        const float* from = x + start;
        over(from, from, count - start < STRETCH ? count - start : STRETCH, NONE, [&](int part, vf v, vf) {
            largest[part] = larger(largest[part], v);
            bad[part] |= ~(v < std::numeric_limits<float>::infinity());
        });
        stretches.offer(largest_lane(largest), start);
    }
    for (const vi& part : bad)
        if (any(part)) return false;
    top = {{NONE, NONE, NONE, NONE, NONE}, {-1, -1, -1, -1, -1}};
    std::sort(stretches.ids, stretches.ids + 5);
    for (int64_t start : stretches.ids)
        for (int64_t i = start; start >= 0 && i < count && i < start + STRETCH; ++i) top.offer(x[i], i);
    return top.values[0] > NONE;
}

// Both summed: e^(x - top), and whether every logit is a number below infinity and one is above -infinity.
static bool sum_row(const float* x, int64_t count, float& top, double& sum) {
    vf largest[PARTS];
    vi bad[PARTS] = {};
    LaneSums sums;
    for (vf& part : largest) part = splat(NONE);
    over(x, x, count, NONE, [&](int part, vf v, vf) {
        largest[part] = larger(largest[part], v);
        bad[part] |= ~(v < std::numeric_limits<float>::infinity());
    });
    for (const vi& part : bad)
        if (any(part)) return false;
    top = largest_lane(largest);
    if (!(top > NONE)) return false;
    over(x, x, count, NONE, [&](int part, vf v, vf) { sums.add(part, exponential(v - top).value); });
    sum = sums.total();
    return true;
}

static int count_shared(const int64_t* ours, const int64_t* theirs, int count) {
    int shared = 0;
    for (int i = 0; i < count; ++i)
        for (int j = 0; j < count; ++j) shared += ours[i] >= 0 && ours[i] == theirs[j];
    return shared;
}

static bool compare_rows(const float* a, const float* b, int64_t count, int64_t target, PairResult& out) {
    Top ours, theirs;
    if (!find_top(a, count, ours) || !find_top(b, count, theirs)) return false;
    const float top_a = ours.values[0], top_b = theirs.values[0];
    LaneSums sum_a, sum_b, terms;
    vi is_lost[PARTS] = {};  // ruled out by the subject alone
    over(a, b, count, NONE, [&](int part, vf va, vf vb) {
        sum_a.add(part, exponential(va - top_a).value);
        sum_b.add(part, exponential(vb - top_b).value);
        is_lost[part] |= (va > NONE) & (vb == NONE);
    });
    const LogSum log_a = log_sum(top_a, sum_a.total()), log_b = log_sum(top_b, sum_b.total());
    over(a, b, count, NONE, [&](int part, vf va, vf vb) {
        terms.add(part, divergence_terms(log_probability(va, log_a), log_probability(vb, log_b)));
    });
    out.low = out.high = terms.total();
    for (const vi& part : is_lost)
        if (any(part)) out.low = out.high = std::numeric_limits<double>::infinity();
    out.reference_loss = log_a.exact() - (double)a[target];
    out.subject_loss = log_b.exact() - (double)b[target];
    out.same_top = ours.ids[0] == theirs.ids[0];
    out.shared = count_shared(ours.ids, theirs.ids, 5);
    return true;
}

static bool row_loss(const float* x, int64_t count, int64_t target, double& loss) {
    float top;
    double sum;
    if (!sum_row(x, count, top, sum)) return false;
    loss = log_sum(top, sum).exact() - (double)x[target];
    return true;
}

struct LikelyToken {
    float value;
    int32_t id;
    bool operator<(const LikelyToken& other) const {  // likelier first, of equals the first
        return value > other.value || (value == other.value && id < other.id);
    }
};

// The k likeliest, in order. Candidates are those above the k-th of all seen so far, gathered until there are 4k.
inline void find_top_k(const float* x, int64_t count, int64_t k, std::vector<LikelyToken>& found) {
    found.clear();
    float threshold = NONE;
    for (int64_t start = 0; start < count; start += LANES) {
        const int64_t end = std::min<int64_t>(start + LANES, count);
        vi seen{};
        over(x + start, x + start, end - start, NONE, [&](int, vf v, vf) { seen |= v > threshold; });
        if (!any(seen)) continue;
        for (int64_t i = start; i < end; ++i)
            if (x[i] > threshold) found.push_back({x[i], (int32_t)i});
        if ((int64_t)found.size() < 4 * k) continue;
        std::nth_element(found.begin(), found.begin() + (k - 1), found.end());
        found.resize((size_t)k);
        threshold = found[(size_t)k - 1].value;
    }
    for (int64_t i = 0; i < count && (int64_t)found.size() < k; ++i)
        if (x[i] == NONE) found.push_back({NONE, (int32_t)i});
    std::partial_sort(found.begin(), found.begin() + k, found.end());
    found.resize((size_t)k);
}

static bool keep_row(const float* x, int64_t count, int64_t k, const Kept& out) {
    thread_local std::vector<LikelyToken> found;
    float top;
    double sum;
    if (!sum_row(x, count, top, sum)) return false;
    const LogSum log = log_sum(top, sum);
    find_top_k(x, count, k, found);
    const float least = found[(size_t)k - 1].value;
    double ties = 0;  // as likely as the last one kept, and not kept
    for (int64_t i = 0; i < count; ++i) ties += x[i] == least;
    for (int64_t i = 0; i < k; ++i) {
        out.ids[i] = found[(size_t)i].id;
        out.log_p[i] = (float)((double)found[(size_t)i].value - log.exact());
        ties -= found[(size_t)i].value == least;
    }
    LaneSums mass, entropy;
    over(x, x, count, NONE, [&](int part, vf v, vf) {
        const vf e = choose(v < least, exponential(v - top).value, splat(0.0f));
        mass.add(part, e);
        entropy.add(part, e * log_probability(larger(v, splat(LOWEST)), log));
    });
    const double each = least > NONE ? std::exp((double)least - (double)top) : 0.0;
    const double tail = mass.total() + ties * each;
    *out.tail_log_mass = std::log(tail / sum);
    *out.tail_entropy = (entropy.total() + (each > 0 ? ties * each * ((double)least - log.exact()) : 0.0)) / sum;
    return true;
}

// p·log(p/q) - p + q.
inline double divergence_term(double log_p, double log_q) {
    const double r = log_q - log_p;
    if (log_p == (double)NONE) return std::exp(log_q);
    if (r > 1) return std::exp(log_q) - std::exp(log_p) * (1 + r);
    return std::exp(log_p) * (std::expm1(r) - r);
}

// The largest Σ p·-log q over p of sum `mass`, each at most `each`: all of it on the smallest logits of `x`.
inline double worst_tail(std::vector<float>& x, double mass, double each, double log_sum) {
    const double places = std::min(std::ceil(mass / each), (double)x.size());
    const int64_t filled = (int64_t)places;
    if (filled < (int64_t)x.size()) std::nth_element(x.begin(), x.begin() + filled, x.end());
    double sum = 0;
    for (int64_t i = 0; i < filled; ++i) sum += log_sum - (double)x[(size_t)i];
    const auto last = std::max_element(x.begin(), x.begin() + filled);
    const double missing = std::max(0.0, (double)filled * each - mass);  // the last place may be partly filled
    if (*last == NONE) return std::numeric_limits<double>::infinity();
    return sum * each - missing * (log_sum - (double)*last);
}

// Bounds of the divergence from what was kept of the reference: see reference/logits.py.
static bool bound_row(const float* x, int64_t count, int64_t k, int64_t target, const Kept& kept, PairResult& out) {
    thread_local std::vector<float> rest;
    thread_local std::vector<char> is_kept;
    Top theirs;
    float top;
    double sum;
    if (!find_top(x, count, theirs) || !sum_row(x, count, top, sum)) return false;
    const double log = log_sum(top, sum).exact();
    is_kept.assign((size_t)count, 0);
    double head = 0;
    for (int64_t i = 0; i < k; ++i) {
        is_kept[(size_t)kept.ids[i]] = 1;
        head += divergence_term((double)kept.log_p[i], (double)x[kept.ids[i]] - log);
    }
    rest.clear();
    for (int64_t i = 0; i < count; ++i)
        if (!is_kept[(size_t)i]) rest.push_back(x[i]);
    LaneSums tail;
    over(rest.data(), rest.data(), (int64_t)rest.size(), NONE, [&](int part, vf v, vf) {
        tail.add(part, exponential(v - top).value);
    });
    const double log_q = std::log(tail.total()) - std::log(sum), log_p = *kept.tail_log_mass, mass = std::exp(log_p);
    out.low = head + divergence_term(log_p, log_q);
    double worst = 0;
    if (mass > 0) worst = *kept.tail_entropy + worst_tail(rest, mass, std::exp((double)kept.log_p[k - 1]), log);
    out.high = std::max(out.low, head + worst - mass + std::exp(log_q));
    out.subject_loss = log - (double)x[target];
    int64_t ours[5];
    const int shared = (int)std::min<int64_t>(k, 5);
    for (int i = 0; i < shared; ++i) ours[i] = kept.ids[i];
    out.same_top = ours[0] == theirs.ids[0];
    out.shared = count_shared(ours, theirs.ids, shared);
    return true;
}

LogitTable logits() { return {compare_rows, row_loss, keep_row, bound_row}; }

}  // namespace tersor::TERSOR_ISA
