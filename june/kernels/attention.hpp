// Attention of a batch over the cache, in the place of llama.cpp's: that one takes a cell of the cache at a
// time, and rounds its sums to halves. The softmax is made on the way (Milakov and Gimelshein, 2018; Dao et
// al., 2022): sums of values are weighted by the largest score so far, and scaled anew with a larger one.
//
// The cells that a token sees are listed first, and looked at in blocks of the list. So it does not matter,
// to the last bit, what else is in the cache, and conversations that are written together, cell by cell in
// turns, cost one another nothing.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ggml.hpp"
#include "vectors.hpp"

namespace {

constexpr int BLOCK_VECTORS = 4;
constexpr int BLOCK_CELLS = BLOCK_VECTORS * LANES;  // are looked at together
constexpr int DIMENSION_VECTORS = 4;                // are summed up together
constexpr int TILE_ROWS = 16;                       // for which a block's keys are turned once
constexpr int GROUP_ROWS = LANES == 16 ? 4 : 3;     // whose sums the registers hold, four vectors each
constexpr int FEW_TOKENS = 16;  // up to here most belong to answers, and every row takes as long
constexpr int PIECES = 8;       // a thread's share of a prompt, whose later rows take longer
constexpr float NEVER = -1000;  // e to its power is 0

// A row is what one head of one token looks for. Rows lie one behind the other by the head of the cache that
// they look at, then by token.
template <int WIDTH>
class Attention {
public:
    explicit Attention(const Tensor& out)
        : out_(out),
          queries_(*out.sources[0]),
          keys_(*out.sources[1]),
          values_(*out.sources[2]),
          mask_(out.sources[3]),
          tokens_(queries_.sizes[1]),
          head_rows_(queries_.sizes[2] / keys_.sizes[2]) {}

    // Without a bias by distance, the mask is 0 or -infinity.
    static bool computes(const Tensor& out) {
        const Tensor &queries = *out.sources[0], &keys = *out.sources[1], &values = *out.sources[2];
        const Tensor *mask = out.sources[3], *sinks = out.sources[4];
        const float bias = out.parameters.floats[1], cap = out.parameters.floats[2];
        return queries.type == F32 && keys.type == F16 && values.type == F16 && !sinks && !bias && !cap &&
               keys.sizes[0] == WIDTH && values.sizes[0] == WIDTH && keys.sizes[1] % BLOCK_CELLS == 0 &&
               keys.sizes[2] == values.sizes[2] && queries.sizes[3] * keys.sizes[3] * values.sizes[3] == 1 &&
               (!mask || (mask->type == F16 && mask->sizes[2] == 1));
    }

    // One thread's share of the rows.
    void run(int thread, int threads) {
        thread_local Buffer<int32_t> list, next_list;
        list_ = list.room(keys_.sizes[1] + 2 * BLOCK_CELLS);
        next_list_ = next_list.room(keys_.sizes[1] + 2 * BLOCK_CELLS);
        const int64_t rows = tokens_ * queries_.sizes[2], of_one_head = tokens_ * head_rows_;
        const int64_t pieces = tokens_ < FEW_TOKENS ? threads : PIECES * threads;
        for (int64_t piece = thread; piece < pieces; piece += threads) {
            const int64_t end = rows * (piece + 1) / pieces;
            for (int64_t row = rows * piece / pieces; row < end; row += count_) {
                const int64_t head_end = (row / of_one_head + 1) * of_one_head;
                begin_tile(row, std::min({int64_t(TILE_ROWS), end - row, head_end - row}));
                attend();
            }
        }
    }

private:
    struct Row {
        int64_t token, head;
        int64_t cells;  // that it sees: so many of the tile's list
        float maximum;  // of the scores
        alignas(64) float query[WIDTH];
        alignas(64) float sums[WIDTH];     // of values, each with its weight
        alignas(64) float weights[LANES];  // sums of weights
    };

    void begin(Row& row, int64_t number) const {
        row.token = number / head_rows_ % tokens_;
        row.head = number / (head_rows_ * tokens_) * head_rows_ + number % head_rows_;
        row.maximum = -INFINITY;
        const auto* query = (const float*)(queries_.data + row.token * queries_.strides_bytes[1] +
                                           row.head * queries_.strides_bytes[2]);
        for (int i = 0; i < WIDTH; i += LANES) {
            store(row.query + i, load(query + i) * all(out_.parameters.floats[0]));
            store(row.sums + i, all(0));
        }
        store(row.weights, all(0));
    }

    void end(const Row& row) const {
        const float weights = sum(load(row.weights));
        const int64_t place = row.token * out_.sizes[1] + row.head;
        auto* out = (float*)(out_.data + place * out_.strides_bytes[1]);
        for (int i = 0; i < WIDTH; i += LANES)
            store(out + i, load(row.sums + i) * all(weights ? 1 / weights : 0));
    }

    // As many rows, up to `most`, as see the beginning of one list: tokens of a prompt do.
    void begin_tile(int64_t first, int64_t most) {
        for (count_ = 0; count_ < most; count_++) {
            Row& row = rows_[count_];
            begin(row, first + count_);
            if (count_ && row.token == rows_[count_ - 1].token) {
                row.cells = rows_[count_ - 1].cells;
                continue;
            }
            row.cells = list_cells(row.token, next_list_);
            const int64_t before = count_ ? rows_[count_ - 1].cells : 0;
            if (row.cells < before || std::memcmp(next_list_, list_, before * sizeof *list_)) return;
            std::swap(list_, next_list_);
        }
    }

    // The cells that a token sees, and after them one of these for two blocks: for the rest of the last, and
    // to be fetched.
    int64_t list_cells(int64_t token, int32_t* list) const {
        constexpr uint16_t UNSEEN = 0xfc00;  // -infinity
        const auto* mask = mask_ ? (const uint16_t*)(mask_->data + token * mask_->strides_bytes[1]) : nullptr;
        int64_t count = 0;
        for (int64_t cell = 0; cell < keys_.sizes[1]; cell += LANES) {
            const uint32_t seen = mask ? unequal(mask + cell, UNSEEN) : lanes_before(LANES);
            store_numbers(seen, cell, list + count);
            count += __builtin_popcount(seen);
        }
        std::fill_n(list + count, 2 * BLOCK_CELLS, count ? list[count - 1] : 0);
        return count;
    }

    void attend() {
        const int64_t head = rows_[0].head / head_rows_, most = rows_[count_ - 1].cells;
        keys_of_head_ = keys_.data + head * keys_.strides_bytes[2];
        values_of_head_ = values_.data + head * values_.strides_bytes[2];
        for (int64_t first = 0; first < most; first += BLOCK_CELLS) {
            cells_ = list_ + first;
            turn();
            Row* seeing = std::find_if(rows_, rows_ + count_, [&](Row& row) { return row.cells > first; });
            for (int i = seeing - rows_; i < count_; i += GROUP_ROWS)
                look<GROUP_ROWS>(std::min(GROUP_ROWS, count_ - i), rows_ + i, first);
        }
        for (int i = 0; i < count_; i++) end(rows_[i]);
    }

    const uint16_t* key(int cell) const {
        return (const uint16_t*)(keys_of_head_ + cells_[cell] * keys_.strides_bytes[1]);
    }
    const uint16_t* value(int cell) const {
        return (const uint16_t*)(values_of_head_ + cells_[cell] * values_.strides_bytes[1]);
    }

    // The keys of a block, as floats: turned_[dimension][cell].
    void turn() {
        for (int cell = 0; cell < BLOCK_CELLS; cell += LANES) {
            const uint16_t* keys[LANES];
            for (int lane = 0; lane < LANES; lane++) keys[lane] = key(cell + lane);
            for (int i = 0; i < WIDTH; i += LANES) {
                Vector square[LANES];
                for (int lane = 0; lane < LANES; lane++) square[lane] = load_halves(keys[lane] + i);
                transpose(square);
                for (int lane = 0; lane < LANES; lane++)
                    store(turned_ + (i + lane) * BLOCK_CELLS + cell, square[lane]);
            }
        }
    }

    template <int ROWS>
    void look(int rows, Row* group, int64_t first) {
        if constexpr (ROWS > 0) {
            if (rows == ROWS) look<ROWS>(group, first);
            else look<ROWS - 1>(rows, group, first);
        }
    }

    // A group of rows looks at a block. What the next block is of comes into the second-level cache
    // meanwhile.
    template <int ROWS>
    void look(Row* group, int64_t first) {
        Vector scores[ROWS][BLOCK_VECTORS];
        for (auto& row : scores)
            for (Vector& part : row) part = all(0);
        for (int i = 0; i < WIDTH; i++) {
            if (i < BLOCK_CELLS) fetch(key(BLOCK_CELLS + i));
            for (int part = 0; part < BLOCK_VECTORS; part++) {
                const Vector key = load(turned_ + i * BLOCK_CELLS + part * LANES);
                for (int r = 0; r < ROWS; r++)
                    scores[r][part] = multiply_add(all(group[r].query[i]), key, scores[r][part]);
            }
        }
        alignas(64) float weights[ROWS][BLOCK_CELLS];
        float corrections[ROWS];
        for (int r = 0; r < ROWS; r++) corrections[r] = weigh(group[r], first, scores[r], weights[r]);
        for (int i = 0; i < WIDTH; i += DIMENSION_VECTORS * LANES) add<ROWS>(group, i, weights, corrections);
    }

    // What weights the scores of a block are, and by what the earlier ones shrink.
    static float weigh(Row& row, int64_t first, Vector* scores, float* weights) {
        for (int part = 0; part < BLOCK_VECTORS; part++)
            scores[part] = only(lanes_before(row.cells - first - part * LANES), scores[part]);
        Vector most = scores[0];
        for (int part = 1; part < BLOCK_VECTORS; part++) most = larger(most, scores[part]);
        const float maximum = std::max(row.maximum, largest(most));
        const Vector correction = exponential(larger(all(row.maximum - maximum), all(NEVER)));
        row.maximum = maximum;
        Vector sums = load(row.weights) * correction;
        for (int part = 0; part < BLOCK_VECTORS; part++) {
            const Vector weight = exponential(larger(scores[part] - all(maximum), all(NEVER)));
            store(weights + part * LANES, weight);
            sums += weight;
        }
        store(row.weights, sums);
        return first_lane(correction);
    }

    // Some dimensions of a block's values, each with its weight.
    template <int ROWS>
    void add(Row* group, int dimension, const float (*weights)[BLOCK_CELLS], const float* corrections) const {
        Vector sums[ROWS][DIMENSION_VECTORS];
        for (int r = 0; r < ROWS; r++)
            for (int part = 0; part < DIMENSION_VECTORS; part++)
                sums[r][part] = load(group[r].sums + dimension + part * LANES) * all(corrections[r]);
        for (int cell = 0; cell < BLOCK_CELLS; cell++) {
            if (dimension == 0) fetch(value(BLOCK_CELLS + cell));
            for (int part = 0; part < DIMENSION_VECTORS; part++) {
                const Vector values = load_halves(value(cell) + dimension + part * LANES);
                for (int r = 0; r < ROWS; r++)
                    sums[r][part] = multiply_add(all(weights[r][cell]), values, sums[r][part]);
            }
        }
        for (int r = 0; r < ROWS; r++)
            for (int part = 0; part < DIMENSION_VECTORS; part++)
                store(group[r].sums + dimension + part * LANES, sums[r][part]);
    }

    static void fetch(const uint16_t* halves) {
        for (int byte = 0; byte < WIDTH * int(sizeof *halves); byte += CACHE_LINE_BYTES)
            _mm_prefetch((const char*)halves + byte, _MM_HINT_T1);
    }

    const Tensor &out_, &queries_, &keys_, &values_;
    const Tensor* mask_;
    int64_t tokens_, head_rows_;  // the latter look at one head of the cache
    int count_ = 0;               // rows of the tile; the last one sees most
    Row rows_[TILE_ROWS];
    int32_t *list_ = nullptr, *next_list_ = nullptr;
    const char *keys_of_head_ = nullptr, *values_of_head_ = nullptr;
    const int32_t* cells_ = nullptr;  // of the block
    alignas(64) float turned_[WIDTH * BLOCK_CELLS];
};

}  // namespace
