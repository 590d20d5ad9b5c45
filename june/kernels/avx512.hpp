// Vectors for CPUs with AVX-512.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>

namespace {

constexpr int LANES = 16;  // floats of a vector
using Vector = __m512;
using Integers = __m512i;

inline Vector load(const float* values) { return _mm512_loadu_ps(values); }
inline void store(float* values, Vector vector) { _mm512_storeu_ps(values, vector); }
inline Vector all(float value) { return _mm512_set1_ps(value); }
inline Integers load_integers(const uint32_t* values) { return _mm512_loadu_si512(values); }
inline Integers all_fours(int32_t bytes) { return _mm512_set1_epi32(bytes); }
inline Vector to_floats(Integers vector) { return _mm512_cvtepi32_ps(vector); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector round(Vector vector) { return _mm512_roundscale_ps(vector, 0); }
inline float first_lane(Vector vector) { return _mm512_cvtss_f32(vector); }
inline float sum(Vector vector) { return _mm512_reduce_add_ps(vector); }
inline float largest(Vector vector) { return _mm512_reduce_max_ps(vector); }

// The larger of two; the second where one is no number.
inline Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }

// 2^n times the sum.
inline Vector scale(Vector sum, Vector n) { return _mm512_scalef_ps(sum, n); }

// Halves are floats of 16 bits.
inline Vector load_halves(const uint16_t* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)halves));
}
inline Vector lower_halves(Integers pairs) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(pairs)); }
inline Vector upper_halves(Integers pairs) { return lower_halves(_mm512_srli_epi32(pairs, 16)); }

// Of each byte four bits.
inline Integers lower_nibbles(Integers bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline Integers upper_nibbles(Integers bytes) { return lower_nibbles(_mm512_srli_epi16(bytes, 4)); }

// Sets of lanes are bits. Those before `count`, which may be negative, or more than there are:
inline uint32_t lanes_before(int64_t count) {
    return count >= LANES ? 0xffff : count < 0 ? 0 : (1 << count) - 1;
}
inline uint32_t at_least(Vector vector, Vector least) {
    return _mm512_cmp_ps_mask(vector, least, _CMP_GE_OQ);
}
inline uint32_t unequal(const uint16_t* values, uint16_t value) {
    return _mm256_cmpneq_epi16_mask(_mm256_loadu_si256((const __m256i*)values), _mm256_set1_epi16(value));
}

// In the other lanes, -infinity; load_only does not read them.
inline Vector only(uint32_t lanes, Vector vector) {
    return _mm512_mask_mov_ps(all(-INFINITY), lanes, vector);
}
inline Vector load_only(uint32_t lanes, const float* values) {
    return _mm512_mask_loadu_ps(all(-INFINITY), lanes, values);
}

// `start` and the number of a lane, for one lane after the other; behind them come others.
inline void store_numbers(uint32_t lanes, int32_t start, int32_t* numbers) {
    const Integers all = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const Integers those =
        _mm512_maskz_compress_epi32(lanes, _mm512_add_epi32(all, _mm512_set1_epi32(start)));
    _mm512_storeu_si512(numbers, those);
}

// 16 x 16 floats.
[[gnu::always_inline]] inline void transpose(Vector* rows) {
    Vector pairs[LANES];
    for (int i = 0; i < LANES; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
    }
    Vector fours[LANES];  // fours[i + c]: of rows i to i + 3 the columns c, c + 4, c + 8 and c + 12
    for (int i = 0; i < LANES; i += 4)
        for (int half = 0; half < 2; half++) {
            __m512d first = _mm512_castps_pd(pairs[i + half]), second = _mm512_castps_pd(pairs[i + 2 + half]);
            fours[i + 2 * half] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
            fours[i + 2 * half + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
        }
    constexpr int EVEN = 0x88, ODD = 0xdd;  // quarters of the first vector, then of the second
    for (int c = 0; c < 4; c++) {
        Vector upper = _mm512_shuffle_f32x4(fours[c], fours[c + 4], EVEN);
        Vector lower = _mm512_shuffle_f32x4(fours[c + 8], fours[c + 12], EVEN);
        rows[c] = _mm512_shuffle_f32x4(upper, lower, EVEN);
        rows[c + 8] = _mm512_shuffle_f32x4(upper, lower, ODD);
        upper = _mm512_shuffle_f32x4(fours[c], fours[c + 4], ODD);
        lower = _mm512_shuffle_f32x4(fours[c + 8], fours[c + 12], ODD);
        rows[c + 4] = _mm512_shuffle_f32x4(upper, lower, EVEN);
        rows[c + 12] = _mm512_shuffle_f32x4(upper, lower, ODD);
    }
}

// 16 bytes at `bytes` in each of 16 rows, as four registers of four bytes a row.
inline void load_turned(const void* bytes, int64_t row_bytes, Integers* fours) {
    for (int i = 0; i < 4; i++) {
        auto row = [&](int number) {
            return _mm_loadu_si128((const __m128i*)((const char*)bytes + number * row_bytes));
        };
        __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(i + 4), 1);
        __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i + 8)), row(i + 12), 1);
        fours[i] = _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
    }
    Integers low01 = _mm512_unpacklo_epi32(fours[0], fours[1]);
    Integers low23 = _mm512_unpacklo_epi32(fours[2], fours[3]);
    Integers high01 = _mm512_unpackhi_epi32(fours[0], fours[1]);
    Integers high23 = _mm512_unpackhi_epi32(fours[2], fours[3]);
    fours[0] = _mm512_unpacklo_epi64(low01, low23);
    fours[1] = _mm512_unpackhi_epi64(low01, low23);
    fours[2] = _mm512_unpacklo_epi64(high01, high23);
    fours[3] = _mm512_unpackhi_epi64(high01, high23);
}

}  // namespace
