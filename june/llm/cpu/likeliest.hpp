// The tokens that one may be drawn from.
#pragma once

#include <algorithm>
#include <functional>

#include "june/avx512.hpp"

namespace {

constexpr int MAXIMA = 256, MAXIMA_VECTORS = MAXIMA / LANES;

// `struct llama_token_data`.
struct Candidate {
    int32_t token;
    float logit, probability;
};

// Sixteen logits, or those that there are and -infinity.
inline Vector load_some(const float* logits, int64_t count) {
    const __mmask16 lanes = count < LANES ? (1 << count) - 1 : 0xffff;
    return _mm512_mask_loadu_ps(all(-INFINITY), lanes, logits);
}

// At least the tokens with the `k` largest logits, k <= MAXIMA: how many there are. No more than `room` are
// written.
inline int64_t find_likeliest(const float* logits, int64_t count, int k, Candidate* out, int64_t room) {
    // The k largest maxima of MAXIMA groups are k logits, so the k largest logits are no smaller.
    alignas(64) float maxima[MAXIMA];
    std::fill_n(maxima, MAXIMA, -INFINITY);
    for (int64_t i = 0; i < count; i += MAXIMA)
        for (int64_t j = i; j < std::min(i + MAXIMA, count); j += LANES) {
            float* most = maxima + j % MAXIMA;
            store(most, _mm512_max_ps(load(most), load_some(logits + j, count - j)));
        }
    std::nth_element(maxima, maxima + k - 1, maxima + MAXIMA, std::greater<float>());
    const Vector least = all(maxima[k - 1]);
    int64_t found = 0;
    for (int64_t i = 0; i < count; i += LANES) {
        const Vector some = load_some(logits + i, count - i);
        for (uint32_t lanes = _mm512_cmp_ps_mask(some, least, _CMP_GE_OQ); lanes; lanes &= lanes - 1) {
            const int64_t token = i + __builtin_ctz(lanes);
            if (token < count && found++ < room) out[found - 1] = {int32_t(token), logits[token], 0};
        }
    }
    return found;
}

}  // namespace
