// What june's kernels have in common.
#pragma once

#ifdef __AVX512F__
#include "avx512.hpp"
#else
#include "avx2.hpp"
#endif

namespace {

constexpr int CACHE_LINE_BYTES = 64;

// For -1000 to 88, with a relative error of 2e-7: e^x = 2^n e^r, and Taylor's series for e^r.
inline Vector exponential(Vector x) {
    Vector n = round(x * all(1.442695041f));
    Vector r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    Vector sum = all(1 / 720.0f);
    for (float factor : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 1 / 2.0f, 1.0f, 1.0f}) sum = sum * r + all(factor);
    return scale(sum, n);
}

// Grows as it must. No std::vector: the linker would offer its functions to libraries that come later.
template <class Value>
class Buffer {
public:
    ~Buffer() { delete[] values_; }
    Value* room(int64_t count) {
        if (count > count_) {
            delete[] values_;
            values_ = nullptr, count_ = 0;
            values_ = new Value[count], count_ = count;
        }
        return values_;
    }

private:
    Value* values_ = nullptr;
    int64_t count_ = 0;
};

}  // namespace
