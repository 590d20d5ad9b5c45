// What june's kernels have in common.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace {

constexpr int LANES = 16;  // floats of a vector
constexpr int CACHE_LINE_BYTES = 64;
using Vector = __m512;

inline Vector load(const float* values) { return _mm512_loadu_ps(values); }
inline void store(float* values, Vector vector) { _mm512_storeu_ps(values, vector); }
inline Vector all(float value) { return _mm512_set1_ps(value); }

// Halves are floats of 16 bits.
inline Vector load_halves(const uint16_t* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)halves));
}

// For -1000 to 88, with a relative error of 2e-7: e^x = 2^n e^r, and Taylor's series for e^r.
inline Vector exponential(Vector x) {
    Vector n = _mm512_roundscale_ps(x * all(1.442695041f), 0);
    Vector r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);
    Vector sum = all(1 / 720.0f);
    for (float factor : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 1 / 2.0f, 1.0f, 1.0f}) sum = sum * r + all(factor);
    return _mm512_scalef_ps(sum, n);
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
