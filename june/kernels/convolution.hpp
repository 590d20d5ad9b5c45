// Convolutions in bfloat16, for CPUs with AVX512-BF16: rows of values, weights in the order in which they are
// multiplied, and the reading of both from what vits.py hands over.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "vectors.hpp"

namespace {

constexpr int TILE_CHANNELS = 2 * LANES, TILE_ROWS = 12;  // 24 of 32 registers hold sums
constexpr int GUARD_ROWS = 4;  // of zeros around what others read: convolutions pad with zeros

using Pair = uint32_t;  // two neighbouring channels in bfloat16, which one instruction multiplies and adds

// Rows of values or pairs, numbered from any row.
template <class Value>
class Rows {
public:
    // Keeps no values.
    void shape(int first, int end, int width) {
        first_ = first, width_ = width;
        values_.resize(std::max(values_.size(), size_t(end - first) * width));
    }
    // For rows 0 to `count`, with zeros around them.
    void shape_guarded(int count, int width) {
        shape(-GUARD_ROWS, count + GUARD_ROWS, width);
        clear_outside(-GUARD_ROWS, count + GUARD_ROWS, count);
    }
    // Zeros where rows first to end lie outside of 0 to `count`.
    void clear_outside(int first, int end, int count) {
        clear(first, std::min(end, 0));
        clear(std::max(first, count), end);
    }
    int width() const { return width_; }
    Value* row(int number) { return values_.data() + ptrdiff_t(number - first_) * width_; }
    const Value* row(int number) const { return values_.data() + ptrdiff_t(number - first_) * width_; }

private:
    void clear(int first, int end) {
        if (first < end) std::fill(row(first), row(end), Value{});
    }
    std::vector<Value> values_;
    int first_ = 0, width_ = 0;
};

inline void store_pairs(Rows<Pair>& rows, int row, int channel, Vector value) {
    __m256bh pairs = _mm512_cvtneps_pbh(value);
    std::memcpy(rows.row(row) + channel / 2, &pairs, sizeof pairs);
}

inline uint16_t bfloat16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to the nearest, a tie to the even one
}

inline Pair pair(float first, float second) { return bfloat16(first) | Pair(bfloat16(second)) << 16; }

// Each output row is a sum of products of a few input rows: a convolution, or one phase of a transposed one.
class Convolution {
public:
    // Output row t takes input rows t + offsets[tap], with weight(output, input, tap).
    template <class Weight>
    Convolution(int inputs, int outputs, std::vector<int> offsets, const float* bias, Weight weight)
        : pairs_(inputs / 2), outputs_(outputs), offsets_(std::move(offsets)), bias_(bias, bias + outputs) {
        for (int tile = 0; tile < outputs; tile += TILE_CHANNELS)
            for (int tap = 0; tap < int(offsets_.size()); tap++)
                for (int input = 0; input < inputs; input += 2)
                    for (int output = tile; output < tile + TILE_CHANNELS; output++)
                        weights_.push_back(pair(weight(output, input, tap), weight(output, input + 1, tap)));
    }

    // Rows beyond its own that an output takes, on either side.
    int reach() const { return std::abs(offsets_.front()); }

    // finish(row, channel, sums) gets rows first to end, 16 channels at a time. Inputs begin at a channel of
    // `in`.
    template <class Finish>
    void run(const Rows<Pair>& in, int first, int end, Finish finish, int from = 0) const {
        for (int channel = 0; channel < outputs_; channel += TILE_CHANNELS) {
            int row = first;
            for (; row + TILE_ROWS <= end; row += TILE_ROWS) tile<TILE_ROWS>(in, from, channel, row, finish);
            for (; row + 4 <= end; row += 4) tile<4>(in, from, channel, row, finish);
            for (; row < end; row++) tile<1>(in, from, channel, row, finish);
        }
    }

private:
    template <int ROWS, class Finish>
    void tile(const Rows<Pair>& in, int from, int channel, int row, Finish& finish) const {
        const int width = in.width();
        Vector sums[ROWS][2];
        for (int r = 0; r < ROWS; r++)
            sums[r][0] = load(&bias_[channel]), sums[r][1] = load(&bias_[channel + LANES]);
        const Pair* weights = weights_.data() + size_t(channel) * pairs_ * offsets_.size();
        for (int offset : offsets_) {
            const Pair* inputs = in.row(row + offset) + from / 2;
            for (int i = 0; i < pairs_; i++, weights += TILE_CHANNELS) {
                auto left = (__m512bh)_mm512_loadu_si512(weights),
                     right = (__m512bh)_mm512_loadu_si512(weights + LANES);
#pragma GCC unroll 16
                for (int r = 0; r < ROWS; r++) {
                    auto input = (__m512bh)_mm512_set1_epi32(inputs[r * width + i]);
                    sums[r][0] = _mm512_dpbf16_ps(sums[r][0], left, input);
                    sums[r][1] = _mm512_dpbf16_ps(sums[r][1], right, input);
                }
            }
        }
        for (int r = 0; r < ROWS; r++)
            finish(row + r, channel, sums[r][0]), finish(row + r, channel + LANES, sums[r][1]);
    }

    int pairs_, outputs_;
    std::vector<int> offsets_;
    std::vector<Pair> weights_;  // [tile of outputs][tap][pair of inputs][output of the tile]
    std::vector<float> bias_;
};

// What follows in the plan and among the weights; vits.py writes them.
struct Reader {
    const int32_t* plan;
    const float* weights;

    int number() { return *plan++; }
    const float* values(size_t count) { return std::exchange(weights, weights + count); }

    Convolution convolution(int inputs, int outputs, int size, int dilation) {
        std::vector<int> offsets;
        for (int tap = 0; tap < size; tap++) offsets.push_back((tap - size / 2) * dilation);
        const float* kernel = values(size_t(outputs) * inputs * size);
        return {inputs, outputs, offsets, values(outputs), [=](int output, int input, int tap) {
                    return kernel[(size_t(output) * inputs + input) * size + tap];
                }};
    }

    // Of one tap, whose inputs or outputs may stand in the other order.
    Convolution product(int inputs, int outputs, bool inputs_reversed, bool outputs_reversed) {
        const float* kernel = values(size_t(outputs) * inputs);
        const float* first = values(outputs);
        std::vector<float> bias(first, first + outputs);
        if (outputs_reversed) std::reverse(bias.begin(), bias.end());
        return {inputs, outputs, {0}, bias.data(), [=](int output, int input, int) {
                    if (inputs_reversed) input = inputs - 1 - input;
                    if (outputs_reversed) output = outputs - 1 - output;
                    return kernel[size_t(output) * inputs + input];
                }};
    }
};

}  // namespace
