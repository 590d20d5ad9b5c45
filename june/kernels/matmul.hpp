// Products of quantised weights and the activations of some tokens, in the place of llama.cpp's function for
// them. That one reads the scales of each block anew for each row and token; here, sixteen rows of weights
// are turned so that a register holds four neighbours of each row, which are multiplied with the four
// activations that they meet. A token's sums are made in the same order whoever else is in its batch.
#pragma once

#include <algorithm>
#include <cstring>

#include "ggml.hpp"
#include "vectors.hpp"

namespace {

constexpr int WEIGHT_ROWS = 16;  // are multiplied together
constexpr int VECTORS = WEIGHT_ROWS / LANES;
constexpr int TILE_TOKENS = 12;  // sums, 8 registers of weights and what a step needs fill AVX-512's 32
constexpr int FOURS = BLOCK / 4;

inline float to_float(uint16_t half) { return _cvtsh_ss(half); }

// Four of a token's numbers, to meet those of each row.
inline Integers load_four(const int8_t* values, int four) {
    int32_t bytes;
    std::memcpy(&bytes, values + 4 * four, sizeof bytes);
    return all_fours(bytes);
}

// How numbers of weights, in fours[vector][four], are multiplied with a token's.
#ifdef __AVX512VNNI__
constexpr int TOGETHER = 1;  // tokens

struct Unsigned {
    Integers add(Integers sums, int vector, int four, Integers met) const {
        return _mm512_dpbusd_epi32(sums, fours[vector][four], met);
    }

    Integers fours[VECTORS][FOURS];
};

// Numbers from 0 to 15.
struct Nibbles : Unsigned {
    static Integers end(Integers sums) { return sums; }
};

// Numbers from -128 to 127. The instruction takes unsigned ones, so 128 is added to them, and the sum starts
// with what that makes too much.
struct Bytes : Unsigned {
    static int32_t start(const int8_t* values) {
        Integers wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)values));
        return _mm512_reduce_add_epi32(_mm512_madd_epi16(wide, _mm512_set1_epi16(-128)));
    }
    void prepare() {
        for (Integers& values : fours[0]) values = _mm512_xor_si512(values, _mm512_set1_epi8(-128));
    }
};
#else
constexpr int TOGETHER = 4;  // tokens

// Left to itself, GCC makes all products before it adds them up, for which there are not enough registers.
inline Integers now(Integers sums) {
    asm("" : "+x"(sums));
    return sums;
}

// Numbers from 0 to 15: two products with a byte, and the sum of eight such pairs, are 16 bits.
struct Nibbles {
    Integers add(Integers sums, int vector, int four, Integers met) const {
        return now(_mm256_add_epi16(sums, _mm256_maddubs_epi16(fours[vector][four], met)));
    }
    static Integers end(Integers sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

    Integers fours[VECTORS][FOURS];
};

// Numbers from -128 to 127. The instruction takes unsigned ones, so the others take over their signs.
struct Bytes {
    static int32_t start(const int8_t*) { return 0; }
    void prepare() {
        for (int vector = 0; vector < VECTORS; vector++)
            for (int four = 0; four < FOURS; four++)
                sizes[vector][four] = _mm256_abs_epi8(fours[vector][four]);
    }
    Integers add(Integers sums, int vector, int four, Integers met) const {
        const Integers pairs =
            _mm256_maddubs_epi16(sizes[vector][four], _mm256_sign_epi8(met, fours[vector][four]));
        return now(_mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
    }

    Integers fours[VECTORS][FOURS], sizes[VECTORS][FOURS];
};
#endif

// A block of sixteen rows.
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
        return {to_float(token.scale), Bytes::start(token.values)};
    }

    [[gnu::always_inline]] Q8_0Weights(const Block* block, int64_t stride, const Scale* sixteen) {
        for (int v = 0; v < VECTORS; v++, block += LANES * stride) {
            load_turned(block->values, stride * sizeof *block, numbers.fours[v]);
            load_turned(block->values + BLOCK / 2, stride * sizeof *block, numbers.fours[v] + FOURS / 2);
            scales[v] = load_halves(sixteen + v * LANES);
        }
        numbers.prepare();
    }
    static Integers start(const Constants& token) { return all_fours(token.start); }
    Vector add(Vector sums, int vector, Integers products, const Constants& token) const {
        return multiply_add(to_floats(products), scales[vector] * all(token.scale), sums);
    }

    Bytes numbers;
    Vector scales[VECTORS];
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

    [[gnu::always_inline]] Q4_1Weights(const Block* block, int64_t stride, const Scale* sixteen) {
        for (int v = 0; v < VECTORS; v++) {
            Integers* fours = numbers.fours[v];
            load_turned(block[v * LANES * stride].values, stride * sizeof *block, fours);
            for (int i = 0; i < FOURS / 2; i++) {
                fours[i + FOURS / 2] = upper_nibbles(fours[i]);
                fours[i] = lower_nibbles(fours[i]);
            }
            const Integers both = load_integers(sixteen + v * LANES);
            scales[v] = lower_halves(both);
            minima[v] = upper_halves(both);
        }
    }
    static Integers start(const Constants&) { return all_fours(0); }
    Vector add(Vector sums, int vector, Integers products, const Constants& token) const {
        sums = multiply_add(minima[vector], all(token.sum), sums);
        return multiply_add(to_floats(Nibbles::end(products)), scales[vector] * all(token.scale), sums);
    }

    Nibbles numbers;
    Vector scales[VECTORS], minima[VECTORS];
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
        Vector sums[TOKENS][VECTORS];
        for (auto& of_token : sums)
            for (Vector& sum : of_token) sum = all(0);
        for (int64_t i = 0; i < blocks; i++, next += STEP_BYTES) {
            // The next rows come into the second-level cache meanwhile. Fetched into the first, they take
            // three times as long.
            for (int byte = 0; byte < STEP_BYTES; byte += CACHE_LINE_BYTES)
                _mm_prefetch(next + byte, _MM_HINT_T1);
            const Weights block(rows + i, weights_stride, scales_ + i * WEIGHT_ROWS);
            add_products<TOKENS>(block, tile + i, stride, constants + i, blocks, sums);
        }
        for (int t = 0; t < TOKENS; t++)
            for (int v = 0; v < VECTORS; v++)
                store(a_.out + (token + t) * a_.out_stride + row + v * LANES, sums[t][v]);
    }

    // What a block of weights and the same block of some tokens make, which lie `stride` apart, and their
    // constants `blocks`.
    template <int TOKENS>
    [[gnu::always_inline]] static void add_products(const Weights& block,
                                                    const typename Weights::Token* tokens, int64_t stride,
                                                    const typename Weights::Constants* constants,
                                                    int64_t blocks, Vector (*sums)[VECTORS]) {
        constexpr int SOME = std::min(TOKENS, TOGETHER);
        Integers products[SOME][VECTORS];
        for (int t = 0; t < SOME; t++)
            for (Integers& product : products[t]) product = Weights::start(constants[t * blocks]);
        for (int four = 0; four < FOURS; four++)
            for (int t = 0; t < SOME; t++) {
                const Integers met = load_four(tokens[t * stride].values, four);
                for (int v = 0; v < VECTORS; v++)
                    products[t][v] = block.numbers.add(products[t][v], v, four, met);
            }
        for (int t = 0; t < SOME; t++)
            for (int v = 0; v < VECTORS; v++)
                sums[t][v] = block.add(sums[t][v], v, products[t][v], constants[t * blocks]);
        if constexpr (TOKENS > SOME)
            add_products<TOKENS - SOME>(block, tokens + SOME * stride, stride, constants + SOME * blocks,
                                        blocks, sums + SOME);
    }

    Arguments a_;
    typename Weights::Constants* constants_ = nullptr;  // [token][block]
    typename Weights::Scale* scales_ = nullptr;         // [block][row of sixteen]
};

}  // namespace
