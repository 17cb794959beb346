// Comparison of logits as Python sees it: whole matrices, every row checked. Part of module.cpp.
#pragma once

using Logits = nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::device::cpu>;  // any step on axis 0
using Ids = nb::ndarray<const int32_t, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Doubles = nb::ndarray<const double, nb::numpy, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// Calls work(row) for every row on `threads` threads, without the interpreter lock; throws if it returns false once.
template <typename Work>
void for_rows(int64_t rows, int64_t columns, int threads, const Work& work) {
    std::atomic<bool> refused{false};
    {
        nb::gil_scoped_release release;
        share_out(rows, std::max<int64_t>(1, LEAST / std::max<int64_t>(1, columns)), threads, [&](int64_t first, int64_t last) {
            for (int64_t row = first; row < last && !refused; ++row)
                if (!work(row)) refused = true;
        });
    }
    if (refused) throw std::invalid_argument("a logit is NaN or +inf, or all of a row are -inf");
}

void check_logits(const Logits& x, const Targets* targets) {
    if (x.shape(1) == 0 || (x.shape(0) > 0 && x.shape(1) > 1 && x.stride(1) != 1))
        throw std::invalid_argument("a row of logits must be contiguous");
    if (!targets) return;
    if (targets->shape(0) != x.shape(0)) throw std::invalid_argument("every row of logits needs one target");
    for (size_t i = 0; i < targets->shape(0); ++i)
        if ((*targets)(i) < 0 || (size_t)(*targets)(i) >= x.shape(1)) throw std::invalid_argument("no such target");
}

// Three doubles, and two columns of counts, for each row of a comparison.
struct Columns {
    int64_t rows;
    std::unique_ptr<double[]> low, high, reference_loss, subject_loss, shared;
    std::unique_ptr<bool[]> same_top;

    explicit Columns(int64_t n)
        : rows(n), low(new double[(size_t)n]), high(new double[(size_t)n]), reference_loss(new double[(size_t)n]),
          subject_loss(new double[(size_t)n]), shared(new double[(size_t)n]), same_top(new bool[(size_t)n]) {}

    void set(int64_t row, const PairResult& result, int64_t of) {
        low[row] = result.low;
        high[row] = result.high;
        reference_loss[row] = result.reference_loss;
        subject_loss[row] = result.subject_loss;
        same_top[row] = result.same_top;
        shared[row] = (double)result.shared / (double)std::min<int64_t>(of, 5);
    }
};

auto compare_logits(Logits reference, Logits subject, Targets targets, int threads) {
    check_logits(reference, &targets);
    check_logits(subject, &targets);
    const int64_t rows = (int64_t)reference.shape(0), columns = (int64_t)reference.shape(1);
    if ((int64_t)subject.shape(1) != columns) throw std::invalid_argument("both need the same vocabulary");
    Columns out(rows);
    for_rows(rows, columns, threads, [&](int64_t row) {
        PairResult result;
        const float *a = reference.data() + row * reference.stride(0), *b = subject.data() + row * subject.stride(0);
        const bool is_fine = chosen()->logits.compare(a, b, columns, targets.data()[row], result);
        if (is_fine) out.set(row, result, columns);
        return is_fine;
    });
    return nb::make_tuple(vector_of(std::move(out.low), rows), vector_of(std::move(out.reference_loss), rows),
                          vector_of(std::move(out.subject_loss), rows), vector_of(std::move(out.same_top), rows),
                          vector_of(std::move(out.shared), rows));
}

auto token_losses(Logits x, Targets targets, int threads) {
    check_logits(x, &targets);
    const int64_t rows = (int64_t)x.shape(0), columns = (int64_t)x.shape(1);
    std::unique_ptr<double[]> out(new double[(size_t)rows]);
    for_rows(rows, columns, threads, [&](int64_t row) {
        return chosen()->logits.loss(x.data() + row * x.stride(0), columns, targets.data()[row], out[row]);
    });
    return vector_of(std::move(out), rows);
}

auto top_k(Logits x, int64_t k, int threads) {
    check_logits(x, nullptr);
    const int64_t rows = (int64_t)x.shape(0), columns = (int64_t)x.shape(1);
    if (k < 1 || k > columns) throw std::invalid_argument("k must be 1 up to the vocabulary");
    std::unique_ptr<int32_t[]> ids(new int32_t[(size_t)(rows * k)]);
    std::unique_ptr<float[]> log_p(new float[(size_t)(rows * k)]);
    std::unique_ptr<double[]> mass(new double[(size_t)rows]), entropy(new double[(size_t)rows]);
    for_rows(rows, columns, threads, [&](int64_t row) {
        const Kept kept{ids.get() + row * k, log_p.get() + row * k, mass.get() + row, entropy.get() + row};
        return chosen()->logits.keep(x.data() + row * x.stride(0), columns, k, kept);
    });
    return nb::make_tuple(array_of(std::move(ids), rows, k), array_of(std::move(log_p), rows, k),
                          vector_of(std::move(mass), rows), vector_of(std::move(entropy), rows));
}

auto compare_to_top_k(Ids ids, Matrix log_p, Doubles mass, Doubles entropy, Logits subject, Targets targets, int threads) {
    check_logits(subject, &targets);
    const int64_t rows = (int64_t)subject.shape(0), columns = (int64_t)subject.shape(1), k = (int64_t)ids.shape(1);
    if ((int64_t)ids.shape(0) != rows || (int64_t)log_p.shape(0) != rows || (int64_t)log_p.shape(1) != k ||
        (int64_t)mass.shape(0) != rows || (int64_t)entropy.shape(0) != rows || k < 1 || k > columns)
        throw std::invalid_argument("what was kept does not fit the logits");
    for (int64_t i = 0; i < rows * k; ++i)
        if (ids.data()[i] < 0 || ids.data()[i] >= columns) throw std::invalid_argument("no such token");
    Columns out(rows);
    for_rows(rows, columns, threads, [&](int64_t row) {
        // Only read: Kept is also what top_k writes.
        const Kept kept{const_cast<int32_t*>(ids.data()) + row * k, const_cast<float*>(log_p.data()) + row * k,
                        const_cast<double*>(mass.data()) + row, const_cast<double*>(entropy.data()) + row};
        PairResult result{};
        const float* x = subject.data() + row * subject.stride(0);
        const bool is_fine = chosen()->logits.bound(x, columns, k, targets.data()[row], kept, result);
        if (is_fine) out.set(row, result, k);
        return is_fine;
    });
    return nb::make_tuple(vector_of(std::move(out.low), rows), vector_of(std::move(out.high), rows),
                          vector_of(std::move(out.subject_loss), rows), vector_of(std::move(out.same_top), rows),
                          vector_of(std::move(out.shared), rows));
}
