// What june's kernels read of ggml, as llama-cpp-python 0.3.36 has it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

enum Type { F32 = 0, F16 = 1, Q4_1 = 3, Q8_0 = 8, Q8_1 = 9 };

constexpr int BLOCK = 32;  // numbers that share a scale
struct Q4_1Block {
    uint32_t scales;            // halves: the scale and, above it, the minimum
    uint8_t values[BLOCK / 2];  // number i and, in the upper four bits, number i + 16
};
struct Q8_0Block {
    uint16_t scale;
    int8_t values[BLOCK];
};
struct Q8_1Block {
    uint16_t scale, sum;  // the sum of the numbers, scaled
    int8_t values[BLOCK];
};
static_assert(sizeof(Q4_1Block) == 20 && sizeof(Q8_0Block) == 34 && sizeof(Q8_1Block) == 36);

// ggml_tensor up to its data; the fastest dimension is the first.
struct Tensor {
    int type;
    void* buffer;
    int64_t sizes[4];
    size_t strides_bytes[4];
    int operation;
    union {
        int32_t integers[16];
        float floats[16];
    } parameters;
    int32_t flags;
    Tensor* sources[10];
    Tensor* viewed;
    size_t viewed_from;
    char* data;
};
static_assert(offsetof(Tensor, data) == 248);

// The beginning of ggml_compute_params.
struct Thread {
    int number, count;
};

}  // namespace
