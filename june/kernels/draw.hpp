// How the next token of an answer is drawn from its row of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>

#include "vectors.hpp"

namespace {

constexpr int GROUPS = 256;  // of a vocabulary; the most that `top_k` may be

// `struct llama_token_data`.
struct Candidate {
    int32_t token;
    float logit, probability;
};

// `struct llama_token_data_array`.
struct Choice {
    Candidate* candidates;
    size_t count;
    int64_t selected;
    bool is_sorted;
};

// What one answer's sampler asks for; `Draw` in llama_overrides.py.
struct Draw {
    const int64_t* never;    // tokens that are not drawn
    const int64_t* written;  // lately, and less likely now; one that stands there twice counts once
    int64_t never_count, written_count;
    void* sampler;  // llama.cpp's, which chooses from the likeliest; none: the likeliest is drawn
    float repeat, presence;
    int32_t top_k;
    int32_t token;  // what was drawn; NONE: no logit is a number
};
constexpr int32_t NONE = -1;

// Written into the logits as llama.cpp's own penalties have it.
inline void penalize(float* logits, const Draw& draw) {
    thread_local Buffer<float> lowered;
    float* logit = lowered.room(draw.written_count);
    for (int64_t i = 0; i < draw.written_count; i++) {
        const float before = logits[draw.written[i]];
        const float repeated = before > 0 ? before / draw.repeat : before * draw.repeat;
        logit[i] = repeated - draw.presence;
    }
    for (int64_t i = 0; i < draw.written_count; i++) logits[draw.written[i]] = logit[i];
    for (int64_t i = 0; i < draw.never_count; i++) logits[draw.never[i]] = -INFINITY;
}

// Calls take(number, vector) with some logits, a vector of them at a time; after the last comes -infinity.
template <class Take>
inline void each_vector(const float* logits, int64_t first, int64_t end, Take take) {
    for (; first + LANES <= end; first += LANES) take(first, load(logits + first));
    if (first < end) take(first, load_only(lanes_before(end - first), logits + first));
}

// At least the tokens with the `k` largest logits, in their order: how many there are. What is no number is
// passed over.
inline int64_t find_likeliest(const float* logits, int64_t count, int k, Candidate* found) {
    // The k largest maxima of groups are k logits, so the k largest logits are no smaller.
    const int64_t group = (count + GROUPS * LANES - 1) / (GROUPS * LANES) * LANES;
    float maxima[GROUPS], sorted[GROUPS];
    for (int64_t i = 0, first = 0; i < GROUPS; i++, first += group) {
        Vector most = all(-INFINITY);
        each_vector(logits, first, std::min(first + group, count),
                    [&](int64_t, Vector some) { most = larger(some, most); });
        maxima[i] = largest(most);
    }
    std::copy_n(maxima, GROUPS, sorted);
    std::nth_element(sorted, sorted + k - 1, sorted + GROUPS, std::greater<float>());
    const float least = sorted[k - 1];
    int64_t n = 0;
    for (int64_t i = 0, first = 0; first < count; i++, first += group) {
        if (maxima[i] < least) continue;
        each_vector(logits, first, std::min(first + group, count), [&](int64_t start, Vector some) {
            for (uint32_t lanes = at_least(some, all(least)); lanes; lanes &= lanes - 1) {
                const int64_t token = start + __builtin_ctz(lanes);
                if (token < count) found[n++] = {int32_t(token), logits[token], 0};
            }
        });
    }
    return n;
}

using Apply = void(void* sampler, Choice* choice);  // `llama_sampler_apply`

inline int32_t draw_token(float* logits, int64_t count, const Draw& draw, Apply* apply) {
    thread_local Buffer<Candidate> candidates;  // all may be as likely
    Candidate* found = candidates.room(count);
    penalize(logits, draw);
    const int64_t n = find_likeliest(logits, count, draw.sampler ? draw.top_k : 1, found);
    if (n == 0) return NONE;
    if (!draw.sampler) return found->token;
    Choice choice{found, size_t(n), -1, false};
    apply(draw.sampler, &choice);
    return choice.candidates[choice.selected].token;
}

}  // namespace
