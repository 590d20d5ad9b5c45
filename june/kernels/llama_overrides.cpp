// What overrides llama.cpp's functions. Two functions have the names and the arguments of llama.cpp's own, as
// of llama-cpp-python 0.3.36, and are found before them. Two more are called by llama_overrides.py. README.md
// says how this works.

#include <dlfcn.h>

#include <atomic>

#include "attention.hpp"
#include "draw.hpp"
#include "matmul.hpp"

namespace {

std::atomic<bool> is_used = false;

// llama.cpp's own function of that name.
template <class Function>
Function* own(const char* name) {
    void* library = dlopen("libggml-cpu.so.0", RTLD_LAZY | RTLD_NOLOAD);
    return library ? (Function*)dlsym(library, name) : nullptr;
}

}  // namespace

extern "C" {

void june_use_kernels(bool wanted) { is_used = wanted; }

// Draws a token from each row of logits; where there is no draw, it is left alone.
void june_draw_tokens(float* logits, int64_t vocabulary, Draw* const* draws, int64_t rows, Apply* apply) {
    for (int64_t row = 0; row < rows; row++)
        if (draws[row])
            draws[row]->token = draw_token(logits + row * vocabulary, vocabulary, *draws[row], apply);
}

// A product, or false if it is to be computed in another way.
bool llamafile_sgemm(const Thread* thread, int64_t rows, int64_t tokens, int64_t blocks, const void* weights,
                     int64_t weights_stride, const void* activations, int64_t activations_stride, void* out,
                     int64_t out_stride, int weights_type, int activations_type, int out_type) {
    static auto* const llama_cpps = own<decltype(llamafile_sgemm)>("llamafile_sgemm");
    if (is_used && out_type == F32 && rows % WEIGHT_ROWS == 0) {
        const Arguments arguments{
            rows,        tokens,    blocks, weights, weights_stride, activations, activations_stride,
            (float*)out, out_stride};
        if (weights_type == Q8_0 && activations_type == Q8_0) {
            Product<Q8_0Weights>(arguments).run(thread->number, thread->count);
            return true;
        }
        if (weights_type == Q4_1 && activations_type == Q8_1) {
            Product<Q4_1Weights>(arguments).run(thread->number, thread->count);
            return true;
        }
    }
    return llama_cpps &&
           llama_cpps(thread, rows, tokens, blocks, weights, weights_stride, activations, activations_stride,
                      out, out_stride, weights_type, activations_type, out_type);
}

void ggml_compute_forward_flash_attn_ext(const Thread* thread, Tensor* out) {
    static auto* const llama_cpps =
        own<decltype(ggml_compute_forward_flash_attn_ext)>("ggml_compute_forward_flash_attn_ext");
    if (is_used && Attention<64>::computes(*out)) Attention<64>(*out).run(thread->number, thread->count);
    else if (is_used && Attention<128>::computes(*out))
        Attention<128>(*out).run(thread->number, thread->count);
    else llama_cpps(thread, out);
}
}
