// Vectors for CPUs with AVX2 and no AVX-512. What the functions do is said in avx512.hpp.
#pragma once

#include <immintrin.h>

#include <array>
#include <cmath>
#include <cstdint>

namespace {

constexpr int LANES = 8;
using Vector = __m256;
using Integers = __m256i;

inline Vector load(const float* values) { return _mm256_loadu_ps(values); }
inline void store(float* values, Vector vector) { _mm256_storeu_ps(values, vector); }
inline Vector all(float value) { return _mm256_set1_ps(value); }
inline Integers load_integers(const uint32_t* values) { return _mm256_loadu_si256((const Integers*)values); }
inline Integers all_fours(int32_t bytes) { return _mm256_set1_epi32(bytes); }
inline Vector to_floats(Integers vector) { return _mm256_cvtepi32_ps(vector); }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector round(Vector vector) { return _mm256_round_ps(vector, _MM_FROUND_TO_NEAREST_INT); }
inline float first_lane(Vector vector) { return _mm256_cvtss_f32(vector); }
inline Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }

// Of the 8 lanes the first is the sum of all, or the largest.
template <class Combine>
inline float reduce(Vector vector, Combine combine) {
    __m128 four = combine(_mm256_castps256_ps128(vector), _mm256_extractf128_ps(vector, 1));
    __m128 two = combine(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(combine(two, _mm_movehdup_ps(two)));
}
inline float sum(Vector vector) {
    return reduce(vector, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); });
}
inline float largest(Vector vector) {
    return reduce(vector, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
}

// A power that is no normal float is 0.
inline Vector scale(Vector sum, Vector n) {
    const Integers exponents = _mm256_slli_epi32(_mm256_cvtps_epi32(n + all(127)), 23);
    const Vector normal = _mm256_cmp_ps(n, all(-127), _CMP_GT_OQ);
    return _mm256_and_ps(sum * _mm256_castsi256_ps(exponents), normal);
}

inline Vector load_halves(const uint16_t* halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)halves));
}
inline Vector upper_halves(Integers pairs) {
    const Integers numbers = _mm256_srli_epi32(pairs, 16);
    return _mm256_cvtph_ps(
        _mm_packus_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1)));
}
inline Vector lower_halves(Integers pairs) { return upper_halves(_mm256_slli_epi32(pairs, 16)); }

inline Integers lower_nibbles(Integers bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi8(15)); }
inline Integers upper_nibbles(Integers bytes) { return lower_nibbles(_mm256_srli_epi16(bytes, 4)); }

inline uint32_t lanes_before(int64_t count) {
    return count >= LANES ? 0xff : count < 0 ? 0 : (1 << count) - 1;
}
inline uint32_t at_least(Vector vector, Vector least) {
    return _mm256_movemask_ps(_mm256_cmp_ps(vector, least, _CMP_GE_OQ));
}
inline uint32_t unequal(const uint16_t* values, uint16_t value) {
    const __m128i same = _mm_cmpeq_epi16(_mm_loadu_si128((const __m128i*)values), _mm_set1_epi16(value));
    return 0xff ^ _mm_movemask_epi8(_mm_packs_epi16(same, _mm_setzero_si128()));
}

// All bits of the lanes.
inline Integers to_mask(uint32_t lanes) {
    const Integers bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(lanes), bits), bits);
}
inline Vector only(uint32_t lanes, Vector vector) {
    return _mm256_blendv_ps(all(-INFINITY), vector, _mm256_castsi256_ps(to_mask(lanes)));
}
inline Vector load_only(uint32_t lanes, const float* values) {
    return only(lanes, _mm256_maskload_ps(values, to_mask(lanes)));
}

// For each set of lanes their numbers, a byte each.
constexpr auto NUMBERS = [] {
    std::array<uint64_t, 256> numbers{};
    for (int lanes = 0; lanes < 256; lanes++)
        for (int lane = 0, place = 0; lane < LANES; lane++)
            if (lanes >> lane & 1) numbers[lanes] |= uint64_t(lane) << (8 * place++);
    return numbers;
}();
inline void store_numbers(uint32_t lanes, int32_t start, int32_t* numbers) {
    const Integers those = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(NUMBERS[lanes]));
    _mm256_storeu_si256((__m256i*)numbers, _mm256_add_epi32(those, _mm256_set1_epi32(start)));
}

// 8 x 8 floats.
[[gnu::always_inline]] inline void transpose(Vector* rows) {
    Vector fours[LANES];  // fours[i + c]: of rows i to i + 3 the columns c and c + 4
    for (int i = 0; i < LANES; i += 4) {
        const Vector low01 = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        const Vector high01 = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
        const Vector low23 = _mm256_unpacklo_ps(rows[i + 2], rows[i + 3]);
        const Vector high23 = _mm256_unpackhi_ps(rows[i + 2], rows[i + 3]);
        constexpr int LOW = 0x44, HIGH = 0xee;  // a half of the first vector, then of the second
        fours[i] = _mm256_shuffle_ps(low01, low23, LOW);
        fours[i + 1] = _mm256_shuffle_ps(low01, low23, HIGH);
        fours[i + 2] = _mm256_shuffle_ps(high01, high23, LOW);
        fours[i + 3] = _mm256_shuffle_ps(high01, high23, HIGH);
    }
    for (int c = 0; c < 4; c++) {
        rows[c] = _mm256_permute2f128_ps(fours[c], fours[c + 4], 0x20);
        rows[c + 4] = _mm256_permute2f128_ps(fours[c], fours[c + 4], 0x31);
    }
}

// 16 bytes at `bytes` in each of 8 rows, as four registers of four bytes a row.
[[gnu::always_inline]] inline void load_turned(const void* bytes, int64_t row_bytes, Integers* fours) {
    for (int i = 0; i < 4; i++) {
        auto row = [&](int number) {
            return _mm_loadu_si128((const __m128i*)((const char*)bytes + number * row_bytes));
        };
        fours[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(row(i)), row(i + 4), 1);
    }
    Integers low01 = _mm256_unpacklo_epi32(fours[0], fours[1]);
    Integers low23 = _mm256_unpacklo_epi32(fours[2], fours[3]);
    Integers high01 = _mm256_unpackhi_epi32(fours[0], fours[1]);
    Integers high23 = _mm256_unpackhi_epi32(fours[2], fours[3]);
    fours[0] = _mm256_unpacklo_epi64(low01, low23);
    fours[1] = _mm256_unpackhi_epi64(low01, low23);
    fours[2] = _mm256_unpacklo_epi64(high01, high23);
    fours[3] = _mm256_unpackhi_epi64(high01, high23);
}

}  // namespace
