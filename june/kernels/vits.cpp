// What speaks: the half of a VITS voice (Kim et al., 2021) that takes the time: its flow, and HiFi-GAN's
// generator (Kong et al., 2020, with residual blocks of kind 2). Latents in, samples out. Products are of
// bfloat16, sums of float: AVX512-BF16 computes them twice as fast as products of floats.
//
// An array's rows are moments, its channels stand side by side. Work is done in chunks of rows, whose arrays
// stay in a core's cache; threads take chunks from a counter, and wait for one another where rows need their
// neighbours.

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "convolution.hpp"
#include "vectors.hpp"

namespace {

constexpr int CHUNK_VALUES = 24 * 1024;  // of one array; a second-level cache holds all of a chunk's
constexpr int LATENT_CHUNK_ROWS = 2 * TILE_ROWS;
constexpr float SLOPE = 0.1f, LAST_SLOPE = 0.01f;  // of HiFi-GAN's leaky ReLU

Vector clamp(Vector value, float most) { return _mm512_min_ps(_mm512_max_ps(value, all(-most)), all(most)); }
Vector leaky(Vector value, float slope) { return _mm512_max_ps(value, value * all(slope)); }

// tanh(x) * sigmoid(y)
Vector gate(Vector x, Vector y) {
    Vector e = exponential(clamp(x, 20) * all(-2)), f = exponential(clamp(y, 40) * all(-1));
    return (all(1) - e) / ((all(1) + e) * (all(1) + f));
}

// What the flow computes with, for all rows. `_in`: as a convolution takes it.
struct LatentArrays {
    Rows<float> latents, hidden, skipped;
    Rows<Pair> latents_in, hidden_in[2];
};

// The same of one thread's chunk.
struct LatentScratch {
    Rows<float> gates;
    Rows<Pair> gated, skipped_in;
};

// One step of the flow: WaveNet reads one half of the channels, and what it says is subtracted from the
// other. Every other step sees the channels in reverse; its weights are reversed instead.
class Coupling {
public:
    Coupling(int channels, int layers, int size, bool reversed, Reader& read)
        : half_(channels / 2),
          channels_(channels),
          read_from_(reversed ? half_ : 0),
          before_(read.product(half_, channels, reversed, false)),
          layers_(layers_of(channels, layers, size, read)),
          after_(read.product(channels, half_, false, reversed)) {}

    int layers() const { return layers_.size(); }

    // Rows first to end of what the first layer reads, in hidden_in[0].
    void begin(LatentArrays& arrays, int first, int end) const {
        before_.run(
            arrays.latents_in, first, end,
            [&](int row, int channel, Vector value) {
                store(arrays.hidden.row(row) + channel, value);
                store_pairs(arrays.hidden_in[0], row, channel, value);
            },
            read_from_);
    }

    // Rows first to end of one layer, from hidden_in[turn] to hidden_in[1 - turn].
    void run(int number, int turn, LatentArrays& arrays, int first, int end, LatentScratch& scratch) const {
        const Layer& layer = layers_[number];
        const bool is_first = number == 0, is_last = number + 1 == layers();
        scratch.gates.shape(first, end, 2 * channels_);
        scratch.gated.shape(first, end, channels_ / 2);
        scratch.skipped_in.shape(first, end, channels_ / 2);
        layer.gates.run(arrays.hidden_in[turn], first, end, [&](int row, int channel, Vector value) {
            store(scratch.gates.row(row) + channel, value);
        });
        for (int row = first; row < end; row++)
            for (int channel = 0; channel < channels_; channel += LANES) {
                const float* gates = scratch.gates.row(row) + channel;
                store_pairs(scratch.gated, row, channel, gate(load(gates), load(gates + channels_)));
            }
        layer.outputs.run(scratch.gated, first, end, [&](int row, int channel, Vector value) {
            if (!is_last && channel < channels_) {
                float* hidden = arrays.hidden.row(row) + channel;
                value += load(hidden);
                store(hidden, value);
                store_pairs(arrays.hidden_in[1 - turn], row, channel, value);
                return;
            }
            if (!is_last) channel -= channels_;
            float* skipped = arrays.skipped.row(row) + channel;
            if (!is_first) value += load(skipped);
            if (is_last) store_pairs(scratch.skipped_in, row, channel, value);
            else store(skipped, value);
        });
        if (is_last) end_with(arrays, first, end, scratch);
    }

private:
    struct Layer {
        Convolution gates, outputs;
    };

    static std::vector<Layer> layers_of(int channels, int count, int size, Reader& read) {
        std::vector<Layer> layers;
        for (int i = 0; i < count; i++) {
            Convolution gates = read.convolution(channels, 2 * channels, size, 1);
            layers.push_back(
                {gates, read.product(channels, i + 1 < count ? 2 * channels : channels, false, false)});
        }
        return layers;
    }

    void end_with(LatentArrays& arrays, int first, int end, LatentScratch& scratch) const {
        after_.run(scratch.skipped_in, first, end, [&](int row, int channel, Vector value) {
            channel += half_ - read_from_;
            float* latent = arrays.latents.row(row) + channel;
            value = load(latent) - value;
            store(latent, value);
            store_pairs(arrays.latents_in, row, channel, value);
        });
    }

    int half_, channels_, read_from_;
    Convolution before_;
    std::vector<Layer> layers_;
    Convolution after_;
};

struct Block {
    Convolution first, second;
};

// What a stage computes with, of one thread's chunk. `_in`: activated, as a convolution takes it.
struct Scratch {
    Rows<float> upsampled, middle, sum;
    Rows<Pair> upsampled_in, middle_in, out;
};

class Stage {
public:
    Stage(int inputs, int blocks, Reader& read) {
        outputs_ = read.number(), stride_ = read.number();
        int size = read.number();
        padding_ = (size - stride_) / 2;
        const float* kernel = read.values(size_t(inputs) * outputs_ * size);
        const float* bias = read.values(outputs_);
        for (int phase = 0; phase < stride_; phase++) {
            std::vector<int> offsets;
            for (int tap = 0; tap < size / stride_; tap++) offsets.push_back(-tap);
            phases_.push_back(
                {inputs, outputs_, offsets, bias, [&](int output, int input, int tap) {
                     return kernel[(size_t(input) * outputs_ + output) * size + phase + tap * stride_];
                 }});
        }
        while (blocks--) {
            size = read.number();
            int first = read.number(), second = read.number();
            blocks_.push_back({read.convolution(outputs_, outputs_, size, first),
                               read.convolution(outputs_, outputs_, size, second)});
            reach_ = std::max(reach_, blocks_.back().first.reach() + blocks_.back().second.reach());
        }
    }

    int channels() const { return outputs_; }
    int stride() const { return stride_; }
    int chunk_rows() const { return CHUNK_VALUES / outputs_ / TILE_ROWS * TILE_ROWS; }

    // Rows first to end, which may lie outside of 0 to `count`, of all `count`, activated with `slope`.
    void run(const Rows<Pair>& in, int first, int end, int count, float slope, Rows<Pair>& out,
             Scratch& scratch) const {
        upsample(in, first - reach_, end + reach_, count, scratch);
        scratch.sum.shape(first, end, outputs_);
        out.clear_outside(first, end, count);
        for (const Block& block : blocks_) {
            int low = first - block.second.reach(), high = end + block.second.reach();
            add_residue(block.first, low, high, count, scratch);
            const Vector share = all(1.0f / blocks_.size());
            const bool is_first = &block == &blocks_.front(), is_last = &block == &blocks_.back();
            block.second.run(scratch.middle_in, std::max(first, 0), std::min(end, count),
                             [&](int row, int channel, Vector value) {
                                 float* sum = scratch.sum.row(row) + channel;
                                 value = value + load(scratch.middle.row(row) + channel);
                                 if (!is_first) value = value + load(sum);
                                 if (is_last) store_pairs(out, row, channel, leaky(value * share, slope));
                                 else store(sum, value);
                             });
        }
    }

private:
    void upsample(const Rows<Pair>& in, int first, int end, int count, Scratch& scratch) const {
        scratch.upsampled.shape(first, end, outputs_);
        scratch.upsampled_in.shape(first, end, outputs_ / 2);
        scratch.upsampled_in.clear_outside(first, end, count);
        for (int phase = 0; phase < stride_; phase++) {
            const int shift = phase - padding_;  // an output's row is its input's * stride + shift
            auto input_of = [&](int row) { return (row - shift + stride_ - 1) / stride_; };
            phases_[phase].run(in, input_of(std::max(first, 0)), input_of(std::min(end, count)),
                               [&](int row, int channel, Vector value) {
                                   row = row * stride_ + shift;
                                   store(scratch.upsampled.row(row) + channel, value);
                                   store_pairs(scratch.upsampled_in, row, channel, leaky(value, SLOPE));
                               });
        }
    }

    void add_residue(const Convolution& convolution, int first, int end, int count, Scratch& scratch) const {
        scratch.middle.shape(first, end, outputs_);
        scratch.middle_in.shape(first, end, outputs_ / 2);
        scratch.middle_in.clear_outside(first, end, count);
        convolution.run(scratch.upsampled_in, std::max(first, 0), std::min(end, count),
                        [&](int row, int channel, Vector value) {
                            value = value + load(scratch.upsampled.row(row) + channel);
                            store(scratch.middle.row(row) + channel, value);
                            store_pairs(scratch.middle_in, row, channel, leaky(value, SLOPE));
                        });
    }

    int outputs_, stride_, padding_, reach_ = 0;
    std::vector<Convolution> phases_;
    std::vector<Block> blocks_;
};

class Voice {
public:
    explicit Voice(Reader read)
        : latents_(read.number()),
          couplings_(couplings(read)),
          channels_(read.number()),
          first_(first(read)) {
        int stages = read.number(), blocks = read.number();
        for (int channels = channels_; stages--; channels = stages_.back().channels())
            stages_.emplace_back(channels, blocks, read);
        last_size_ = read.number();
        int channels = stages_.back().channels();
        const float* kernel = read.values(size_t(channels) * last_size_);
        for (int tap = 0; tap < last_size_; tap++)
            for (int channel = 0; channel < channels; channel++)
                last_.push_back(kernel[channel * last_size_ + tap]);
    }

    // False if `stop` ended it.
    bool run(const float* latents, int count, int threads, float* samples,
             const std::atomic<int32_t>& stop) const {
        LatentArrays arrays;
        prepare(latents, count, arrays);
        std::vector<Rows<Pair>> in(stages_.size());  // of each stage
        std::vector<int> counts{count};
        for (size_t i = 0; i < stages_.size(); i++) {
            in[i].shape_guarded(counts.back(), (i ? stages_[i - 1].channels() : channels_) / 2);
            counts.push_back(counts.back() * stages_[i].stride());
        }

        std::vector<std::atomic<int>> taken(steps());
        std::barrier together(threads);
        auto work = [&] {
            int step = 0;
            auto each_chunk = [&](int rows, int chunk_rows, auto&& run) {
                for (int first; !stop && (first = taken[step]++ * chunk_rows) < rows;)
                    run(first, std::min(first + chunk_rows, rows));
                step++;
                together.arrive_and_wait();
            };
            LatentScratch latent_scratch;
            each_chunk(count, LATENT_CHUNK_ROWS,
                       [&](int first, int end) { couplings_[0].begin(arrays, first, end); });
            for (size_t i = 0; i < couplings_.size(); i++)
                for (int layer = 0; layer < couplings_[i].layers(); layer++)
                    each_chunk(count, LATENT_CHUNK_ROWS, [&](int first, int end) {
                        couplings_[i].run(layer, layer % 2, arrays, first, end, latent_scratch);
                        if (layer + 1 == couplings_[i].layers() && i + 1 < couplings_.size())
                            couplings_[i + 1].begin(arrays, first, end);
                    });
            each_chunk(count, LATENT_CHUNK_ROWS, [&](int first, int end) {
                first_.run(arrays.latents_in, first, end, [&](int row, int channel, Vector value) {
                    store_pairs(in[0], row, channel, leaky(value, SLOPE));
                });
            });
            Scratch scratch;
            for (size_t i = 0; i < stages_.size(); i++)
                each_chunk(counts[i + 1], stages_[i].chunk_rows(), [&](int first, int end) {
                    if (i + 1 < stages_.size())
                        stages_[i].run(in[i], first, end, counts[i + 1], SLOPE, in[i + 1], scratch);
                    else finish(in[i], first, end, counts[i + 1], samples, scratch);
                });
        };
        std::vector<std::thread> others;
        for (int i = 1; i < threads; i++) {
            try {
                others.emplace_back(work);
            } catch (const std::system_error&) {  // no thread can be had: those that are there do all of it
                together.arrive_and_drop();
            }
        }
        work();
        for (std::thread& other : others) other.join();
        return !stop;
    }

private:
    std::vector<Coupling> couplings(Reader& read) {
        int count = read.number(), layers = read.number(), size = read.number();
        std::vector<Coupling> couplings;
        for (int i = 0; i < count; i++) couplings.emplace_back(latents_, layers, size, i % 2 == 0, read);
        return couplings;
    }

    Convolution first(Reader& read) {
        int size = read.number();
        return read.convolution(latents_, channels_, size, 1);
    }

    int steps() const { return 2 + couplings_.size() * couplings_[0].layers() + stages_.size(); }

    void prepare(const float* latents, int count, LatentArrays& arrays) const {
        arrays.latents.shape(0, count, latents_);
        arrays.hidden.shape(0, count, latents_);
        arrays.skipped.shape(0, count, latents_);
        for (Rows<Pair>* rows : {&arrays.latents_in, &arrays.hidden_in[0], &arrays.hidden_in[1]})
            rows->shape_guarded(count, latents_ / 2);
        for (int row = 0; row < count; row++) {
            float* values = arrays.latents.row(row);
            for (int channel = 0; channel < latents_; channel++)
                values[channel] = latents[size_t(channel) * count + row];
            for (int channel = 0; channel < latents_; channel += LANES)
                store_pairs(arrays.latents_in, row, channel, load(values + channel));
        }
    }

    // The last stage's rows first to end, and what becomes one sample of each.
    void finish(const Rows<Pair>& in, int first, int end, int count, float* samples, Scratch& scratch) const {
        const int channels = stages_.back().channels(), reach = last_size_ / 2;
        scratch.out.shape(first - reach, end + reach, channels / 2);
        stages_.back().run(in, first - reach, end + reach, count, LAST_SLOPE, scratch.out, scratch);
        for (int row = first; row < end; row++) {
            // Rows lie one behind the other, and so do the weights of taps.
            const Pair* pairs = scratch.out.row(row - reach);
            Vector sums = _mm512_setzero_ps();
            for (size_t i = 0; i < last_.size(); i += LANES) {
                __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(pairs + i / 2)));
                sums =
                    _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16)), load(&last_[i]), sums);
            }
            samples[row] = std::tanh(_mm512_reduce_add_ps(sums));
        }
    }

    int latents_;
    std::vector<Coupling> couplings_;
    int channels_;
    Convolution first_;
    std::vector<Stage> stages_;
    int last_size_;
    std::vector<float> last_;  // [tap][channel]
};

}  // namespace

extern "C" {

Voice* vits_new(const int32_t* plan, const float* weights) { return new Voice({plan, weights}); }

void vits_free(Voice* voice) { delete voice; }

// latents: float [channels][count]; samples: float [count * all strides]. False if `stop` became other than
// 0.
bool vits_run(const Voice* voice, const float* latents, int32_t count, int32_t threads, float* samples,
              const int32_t* stop) {
    return voice->run(latents, count, threads, samples, reinterpret_cast<const std::atomic<int32_t>&>(*stop));
}
}
