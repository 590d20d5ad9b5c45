// The tokens that one may be drawn from.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "june/vectors.hpp"

namespace {

constexpr int MAXIMA = 256;

// `struct llama_token_data`.
struct Candidate {
    int32_t token;
    float logit, probability;
};

// What was written lately is less likely, as llama.cpp's own penalties have it.
struct Penalties {
    const int64_t* written;  // tokens; one that stands there twice is lowered once
    int64_t count;
    float repeat, presence;
};

inline void penalize(float* logits, const Penalties& penalties) {
    thread_local Buffer<float> lowered;
    float* logit = lowered.room(penalties.count);
    for (int64_t i = 0; i < penalties.count; i++) {
        const float before = logits[penalties.written[i]];
        const float repeated = before > 0 ? before / penalties.repeat : before * penalties.repeat;
        logit[i] = repeated - penalties.presence;
    }
    for (int64_t i = 0; i < penalties.count; i++) logits[penalties.written[i]] = logit[i];
}

// Calls take(number, vector) with all logits, a vector of them at a time; after the last comes -infinity.
template <class Take>
inline void each_vector(const float* logits, int64_t count, Take take) {
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) take(i, load(logits + i));
    if (i < count) take(i, load_only(lanes_before(count - i), logits + i));
}

// At least the tokens with the `k` largest logits, k <= MAXIMA: how many there are. No more than `room` are
// written.
inline int64_t find_likeliest(const float* logits, int64_t count, int k, Candidate* out, int64_t room) {
    // The k largest maxima of MAXIMA groups are k logits, so the k largest logits are no smaller.
    alignas(64) float maxima[MAXIMA];
    std::fill_n(maxima, MAXIMA, -INFINITY);
    each_vector(logits, count, [&](int64_t first, Vector some) {
        float* most = maxima + first % MAXIMA;
        store(most, larger(some, load(most)));  // in this order it passes over what is no number
    });
    std::nth_element(maxima, maxima + k - 1, maxima + MAXIMA, std::greater<float>());
    const Vector least = all(maxima[k - 1]);
    int64_t found = 0;
    each_vector(logits, count, [&](int64_t first, Vector some) {
        for (uint32_t lanes = at_least(some, least); lanes; lanes &= lanes - 1) {
            const int64_t token = first + __builtin_ctz(lanes);
            if (token < count && found++ < room) out[found - 1] = {int32_t(token), logits[token], 0};
        }
    });
    return found;
}

}  // namespace
