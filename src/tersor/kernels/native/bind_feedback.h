// Error feedback as Python sees it: checks the arrays, shares the rows out over threads. Part of module.cpp.
#pragma once

using Written = nb::ndarray<float, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Codes = nb::ndarray<uint8_t, nb::numpy, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check_range(int64_t first, int64_t last, int64_t from, int64_t until, int64_t columns) {
    if (first < 0 || last < first || from < 0 || until < from || last > columns || until > columns)
        throw std::invalid_argument("these columns are not in order or do not exist");
}

template <typename Array>
void check_shape(const Array& array, int64_t rows, int64_t columns) {
    if ((int64_t)array.shape(0) != rows || (int64_t)array.shape(1) != columns)
        throw std::invalid_argument("an array of the feedback has another shape than the rest");
}

void check_matrix(const Written& target, const Written& change, const Matrix& matrix) {
    const int64_t columns = (int64_t)target.shape(0), rows = (int64_t)target.shape(1);
    check_shape(change, columns, rows);
    check_shape(matrix, columns, columns);
    if (rows % chosen()->feedback.tile) throw std::invalid_argument("the rows do not divide into tiles");
}

// Rows for each thread, all tiles whole.
template <typename Work>
void share_rows(int64_t rows, int threads, const Work& work) {
    nb::gil_scoped_release release;
    share_out(rows, 32, threads, work);
}

// Rounds columns [first, last); see FeedbackJob for the arrays. `table` is empty for an affine grid.
void settle(Written target, Matrix weight, Written error, Written change, Matrix matrix, Targets group, Matrix step,
            Matrix offset, Matrix zero, Vector table, int levels, Codes codes, int64_t first, int64_t last, int64_t until,
            int threads) {
    check_matrix(target, change, matrix);
    const int64_t columns = (int64_t)target.shape(0), rows = (int64_t)target.shape(1), groups = (int64_t)step.shape(0);
    check_range(first, last, last, until, columns);
    check_shape(weight, columns, rows);
    check_shape(error, columns, rows);
    check_shape(codes, columns, rows);
    check_shape(step, groups, rows);
    const bool has_table = table.shape(0) > 0;
    if (!has_table) check_shape(offset, groups, rows), check_shape(zero, groups, rows);
    if (levels < 1 || levels > 256 || (has_table && (int64_t)table.shape(0) != levels))
        throw std::invalid_argument("a grid has 1 to 256 levels, and a table as many entries");
    if ((int64_t)group.shape(0) != columns) throw std::invalid_argument("every column needs a group");
    for (int64_t j = 0; j < columns; ++j)
        if (group.data()[j] < 0 || group.data()[j] >= groups) throw std::invalid_argument("no such group");
    FeedbackJob job{columns, rows, target.data(), weight.data(), error.data(), change.data(), matrix.data(), group.data(),
                    step.data(), offset.data(), zero.data(), nullptr, 0, 0, levels, codes.data()};
    if (has_table) {
        job.table = table.data();
        job.table_low = *std::min_element(job.table, job.table + levels);
        job.table_high = *std::max_element(job.table, job.table + levels);
    }
    share_rows(rows, threads, [&](int64_t row, int64_t end) { chosen()->feedback.settle(job, first, last, until, row, end); });
}

// Adds the changes of columns [first, last), times the matrix, to the targets of columns [from, until).
void propagate(Written target, Written change, Matrix matrix, int64_t first, int64_t last, int64_t from, int64_t until,
               int threads) {
    check_matrix(target, change, matrix);
    FeedbackJob job{};
    job.columns = (int64_t)target.shape(0), job.rows = (int64_t)target.shape(1);
    check_range(first, last, from, until, job.columns);
    job.target = target.data(), job.change = change.data(), job.matrix = matrix.data();
    share_rows(job.rows, threads, [&](int64_t row, int64_t end) { chosen()->feedback.propagate(job, first, last, from, until, row, end); });
}
