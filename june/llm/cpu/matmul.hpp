// Products of quantised weights and the activations of some tokens, in the place of llama.cpp's function for
// them. That one reads the scales of each block anew for each row and token; here, sixteen rows of weights
// are turned so that a register holds four neighbours of each row, and one instruction multiplies these with
// the four activations that they meet, and adds up (AVX512-VNNI). A token's sums are made in the same order
// whoever else is in its batch.
#pragma once

#include <cstring>

#include "ggml.hpp"
#include "june/avx512.hpp"

namespace {

constexpr int WEIGHT_ROWS = 16;
constexpr int TILE_TOKENS = 12;  // their sums, 8 registers of weights and what a step needs fill all 32
constexpr int FOURS = BLOCK / 4;

using Integers = __m512i;

inline Vector to_vector(__m256i halves) { return _mm512_cvtph_ps(halves); }
inline float to_float(uint16_t half) { return _cvtsh_ss(half); }

// In each 128 bits of the four, a 4 x 4 matrix of 32-bit numbers is transposed.
inline void transpose(Integers* fours) {
    Integers low01 = _mm512_unpacklo_epi32(fours[0], fours[1]);
    Integers low23 = _mm512_unpacklo_epi32(fours[2], fours[3]);
    Integers high01 = _mm512_unpackhi_epi32(fours[0], fours[1]);
    Integers high23 = _mm512_unpackhi_epi32(fours[2], fours[3]);
    fours[0] = _mm512_unpacklo_epi64(low01, low23);
    fours[1] = _mm512_unpackhi_epi64(low01, low23);
    fours[2] = _mm512_unpacklo_epi64(high01, high23);
    fours[3] = _mm512_unpackhi_epi64(high01, high23);
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
    transpose(fours);
}

// A block of sixteen rows. The instruction multiplies unsigned weights with signed activations, so 128 is
// added to the weights, and 128 times the activations taken off the sum.
struct Q8_0Weights {
    using Block = Q8_0Block;
    using Token = Q8_0Block;
    using Scale = uint16_t;
    struct Constants {
        float scale;
        int32_t start;
    };

    static Scale scale(const Block& block) { return block.scale; }
    static Constants constants(const Token& token) {
        Integers values = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)token.values));
        Integers products = _mm512_madd_epi16(values, _mm512_set1_epi16(-128));
        return {to_float(token.scale), _mm512_reduce_add_epi32(products)};
    }

    Q8_0Weights(const Block* block, int64_t stride, const Scale* sixteen) {
        load_turned(block->values, stride * sizeof *block, fours);
        load_turned(block->values + BLOCK / 2, stride * sizeof *block, fours + FOURS / 2);
        for (Integers& values : fours) values = _mm512_xor_si512(values, _mm512_set1_epi8(-128));
        scales = load_halves(sixteen);
    }
    Integers start(const Constants& token) const { return _mm512_set1_epi32(token.start); }
    Vector add(Vector sums, Integers products, const Constants& token) const {
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scales * all(token.scale), sums);
    }

    Integers fours[FOURS];
    Vector scales;
};

// A weight is its number times the scale, and the minimum.
struct Q4_1Weights {
    using Block = Q4_1Block;
    using Token = Q8_1Block;
    using Scale = uint32_t;
    struct Constants {
        float scale, sum;
    };

    static Scale scale(const Block& block) { return block.scales; }
    static Constants constants(const Token& token) { return {to_float(token.scale), to_float(token.sum)}; }

    Q4_1Weights(const Block* block, int64_t stride, const Scale* sixteen) {
        const Integers mask = _mm512_set1_epi8(15);
        load_turned(block->values, stride * sizeof *block, fours);
        for (int i = 0; i < FOURS / 2; i++) {
            fours[i + FOURS / 2] = _mm512_and_si512(_mm512_srli_epi16(fours[i], 4), mask);
            fours[i] = _mm512_and_si512(fours[i], mask);
        }
        Integers both = _mm512_loadu_si512(sixteen);
        scales = to_vector(_mm512_cvtepi32_epi16(both));
        minima = to_vector(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16)));
    }
    Integers start(const Constants&) const { return _mm512_setzero_si512(); }
    Vector add(Vector sums, Integers products, const Constants& token) const {
        sums = _mm512_fmadd_ps(minima, all(token.sum), sums);
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), scales * all(token.scale), sums);
    }

    Integers fours[FOURS];
    Vector scales, minima;
};

// What llama.cpp calls the function with. out[token][row]; weights [row][block] and activations
// [token][block]. A stride is that of rows or tokens, in blocks, and in `out` in numbers.
struct Arguments {
    int64_t rows, tokens, blocks;
    const void* weights;
    int64_t weights_stride;
    const void* activations;
    int64_t activations_stride;
    float* out;
    int64_t out_stride;
};

template <class Weights>
class Product {
public:
    explicit Product(const Arguments& arguments) : a_(arguments) {}

    // One thread's share of the rows.
    void run(int thread, int threads) {
        thread_local Buffer<typename Weights::Constants> constants;
        thread_local Buffer<typename Weights::Scale> scales;
        constants_ = constants.room(a_.tokens * a_.blocks);
        scales_ = scales.room(a_.blocks * WEIGHT_ROWS);
        for (int64_t token = 0; token < a_.tokens; token++)
            for (int64_t i = 0; i < a_.blocks; i++)
                constants_[token * a_.blocks + i] = Weights::constants(activations(token)[i]);
        const int64_t sixteens = a_.rows / WEIGHT_ROWS, end = sixteens * (thread + 1) / threads;
        for (int64_t i = sixteens * thread / threads; i < end; i++) multiply(i * WEIGHT_ROWS);
    }

private:
    const typename Weights::Block* weights(int64_t row) const {
        return (const typename Weights::Block*)a_.weights + row * a_.weights_stride;
    }
    const typename Weights::Token* activations(int64_t token) const {
        return (const typename Weights::Token*)a_.activations + token * a_.activations_stride;
    }

    // Sixteen rows with all tokens, in tiles of nearly the same size.
    void multiply(int64_t row) {
        for (int64_t i = 0; i < a_.blocks; i++)
            for (int r = 0; r < WEIGHT_ROWS; r++)
                scales_[i * WEIGHT_ROWS + r] = Weights::scale(weights(row + r)[i]);
        const int64_t tiles = (a_.tokens + TILE_TOKENS - 1) / TILE_TOKENS;
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t token = a_.tokens * i / tiles, end = a_.tokens * (i + 1) / tiles;
            multiply_tile<TILE_TOKENS>(end - token, row, token);
        }
    }

    template <int TOKENS>
    void multiply_tile(int64_t tokens, int64_t row, int64_t token) const {
        if constexpr (TOKENS > 0) {
            if (tokens == TOKENS) multiply_tile<TOKENS>(row, token);
            else multiply_tile<TOKENS - 1>(tokens, row, token);
        }
    }

    template <int TOKENS>
    void multiply_tile(int64_t row, int64_t token) const {
        constexpr int STEP_BYTES = WEIGHT_ROWS * sizeof(typename Weights::Block);
        const int64_t blocks = a_.blocks, weights_stride = a_.weights_stride, stride = a_.activations_stride;
        const auto* rows = weights(row);
        const auto* tile = activations(token);
        const auto* constants = constants_ + token * blocks;
        const char* next = (const char*)weights(row + WEIGHT_ROWS);
        Vector sums[TOKENS];
        for (Vector& sum : sums) sum = all(0);
        for (int64_t i = 0; i < blocks; i++, next += STEP_BYTES) {
            // The next rows come into the second-level cache meanwhile. Fetched into the first, they take
            // three times as long.
            for (int byte = 0; byte < STEP_BYTES; byte += CACHE_LINE_BYTES)
                _mm_prefetch(next + byte, _MM_HINT_T1);
            const Weights block(rows + i, weights_stride, scales_ + i * WEIGHT_ROWS);
            for (int t = 0; t < TOKENS; t++) {
                const int8_t* values = tile[t * stride + i].values;
                Integers products = block.start(constants[t * blocks + i]);
                for (int four = 0; four < FOURS; four++) {
                    int32_t met;
                    std::memcpy(&met, values + 4 * four, sizeof met);
                    products = _mm512_dpbusd_epi32(products, block.fours[four], _mm512_set1_epi32(met));
                }
                sums[t] = block.add(sums[t], products, constants[t * blocks + i]);
            }
        }
        for (int t = 0; t < TOKENS; t++)
            _mm512_storeu_ps(a_.out + (token + t) * a_.out_stride + row, sums[t]);
    }

    Arguments a_;
    typename Weights::Constants* constants_ = nullptr;  // [token][block]
    typename Weights::Scale* scales_ = nullptr;         // [block][row of sixteen]
};

}  // namespace
