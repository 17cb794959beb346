// Attention of one token as Python sees it: memory by address, which kernels/attention.py has checked. Part of module.cpp.
#pragma once

// y [batch, heads, value width]. Kinds of numbers: 0 float32, 1 float16, 2 bfloat16; a mask at 0: there is none.
void attend(int64_t batch, int64_t heads, int64_t key_heads, int64_t tokens, int64_t width, int64_t value_width, int type,
            uintptr_t query, uintptr_t key, int64_t key_batch, int64_t key_head, int64_t key_token, uintptr_t value,
            int64_t value_batch, int64_t value_head, int64_t value_token, uintptr_t mask, int64_t mask_batch,
            int64_t mask_head, float scaling, uintptr_t y, int threads) {
    if (batch < 1 || key_heads < 1 || heads < 1 || heads % key_heads || tokens < 1 || width < 1 || width > MOST_WIDTH ||
        value_width < 1 || type < 0 || type > 2)
        throw std::invalid_argument("no kernel for such an attention");
    nb::gil_scoped_release release;
    if (threads <= 0) threads = (int)std::max(1u, std::thread::hardware_concurrency());
    const int64_t chunks = (tokens + CHUNK - 1) / CHUNK, size = value_width + 2;
    thread_local std::vector<float> memory;
    const Scratch<float> scratch(memory, (size_t)(chunks * batch * heads * size));
    const AttentionJob job{batch, heads, key_heads, tokens, width, value_width, (Real)type, (const void*)query,
                           (const void*)key, key_batch, key_head, key_token, (const void*)value, value_batch, value_head,
                           value_token, (const float*)mask, mask_batch, mask_head, scaling, memory.data(), size, (void*)y};
    const AttentionTable table = chosen()->attention;
    const bool is_small = heads * batch * tokens * (width + value_width) < 1 << 18;  // not worth a second thread
    take_turns(batch * key_heads * chunks, 1, is_small ? 1 : threads, [&](int64_t first, int64_t last) {
        for (; first < last; ++first) table.chunk(job, first);
    });
    for (int64_t row = 0; row < batch * heads; ++row) table.merge(job, row);
}
