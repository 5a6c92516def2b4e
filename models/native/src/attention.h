// Causal attention over the paged cache, for rows of one request that share a key-value head.
//
// Softmax goes in rounds of 128 tokens from the first position on, whatever else is asked in the same pass (Milakov &
// Gimelshein 2018): the order of a row's additions depends on its position alone. Scores and sums are float32. With a
// bfloat16 cache, queries and weights are rounded to it as well, for the CPU's products of pairs.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "lanes.h"
#include "linear.h"
#include "pages.h"
#include "tiles.h"

namespace headrace {

constexpr int kRound = 128;
constexpr int kRoundPages = kRound / kPage;
constexpr int kMostQueries = 16;

// The pages of one round: where each one's keys and values of one head begin.
template <class T>
struct RoundPages {
  const T* keys[kRoundPages];
  const T* values[kRoundPages];
  int64_t count;
};

// How many queries go together, so that their sums stay in registers beside what the numbers of a cache of T become.
template <class T>
constexpr int kMostTogether = std::is_same_v<T, BFloat16> ? kMostRowsBFloat16 : kMostRows;

// The products of a round for R rows: with N pages or N vectors of 16 dimensions at a time, there are enough sums under
// way to keep the CPU busy.
template <class T, int R>
constexpr int kTogether = 4 * R <= kMostTogether<T> ? 4 : 2 * R <= kMostTogether<T> ? 2 : 1;

// What the numbers of a cache of T are multiplied with.
template <class T>
using FactorOf = std::conditional_t<std::is_same_v<T, BFloat16>, Factor, T>;

template <class T, int R>
void score_by_registers(const FactorOf<T>* queries, const RoundPages<T>& pages, int64_t head_dim, float* scores) {
  constexpr int N = kTogether<T, R>;
  int64_t n = 0;
  for (; n + N <= pages.count; n += N) score_pages<R, N>(queries, pages.keys + n, head_dim, scores + n * kPage, kRound);
  for (; n < pages.count; n++) score_pages<R, 1>(queries, pages.keys + n, head_dim, scores + n * kPage, kRound);
}

template <class T, int R>
void sum_by_registers(const FactorOf<T>* weights, const RoundPages<T>& pages, int64_t tokens, int64_t head_dim, float* found) {
  constexpr int N = kTogether<T, R>;
  int64_t d = 0;
  for (; d + N * kLanes <= head_dim; d += N * kLanes)
    add_values<R, N>(weights, kRound, pages.values, tokens, head_dim, d, found);
  for (; d < head_dim; d += kLanes) add_values<R, 1>(weights, kRound, pages.values, tokens, head_dim, d, found);
}

// Up to 16 queries over one key-value head at a time. Scratch for one thread.
template <class T>
class Attention {
 public:
  Attention(int64_t kv_heads, int64_t head_dim, float scale)
      : shape_{kv_heads, head_dim}, scale_(scale), queries_(kMostQueries * head_dim), found_(kMostQueries * head_dim) {}

  bool full() const { return count_ == kMostQueries; }

  // Takes a query that sees the positions from `oldest` up to `newest`; its result goes to `to`.
  void add(const float* query, int64_t oldest, int64_t newest, float* to) {
    for (int64_t d = 0; d < shape_.head_dim; d += kLanes) store(&queries_[count_ * shape_.head_dim + d], load(query + d));
    oldest_[count_] = oldest;
    newest_[count_] = newest;
    to_[count_] = to;
    count_++;
  }

  // Answers the queries that were added; `keys` and `values` are the layer's.
  void run(const T* keys, const T* values, const int32_t* table, int64_t kv_head) {
    const int64_t oldest = *std::min_element(oldest_, oldest_ + count_);
    const int64_t newest = *std::max_element(newest_, newest_ + count_);
    std::fill_n(found_.begin(), count_ * shape_.head_dim, 0.0f);
    for (int r = 0; r < count_; r++) best_[r] = -std::numeric_limits<float>::infinity(), total_[r] = 0;
    for (int64_t at = oldest / kRound * kRound; at <= newest; at += kRound) {
      RoundPages<T> pages;
      const int64_t tokens = std::min<int64_t>(kRound, newest - at + 1);
      pages.count = (tokens + kPage - 1) / kPage;
      for (int64_t n = 0; n < pages.count; n++) {
        const int64_t offset = shape_.offset(table[at / kPage + n], kv_head);
        pages.keys[n] = keys + offset;
        pages.values[n] = values + offset;
      }
      round(pages, at, tokens);
    }
    for (int r = 0; r < count_; r++)
      for (int64_t d = 0; d < shape_.head_dim; d += kLanes)
        store(to_[r] + d, load(&found_[r * shape_.head_dim + d]) / total_[r]);
    count_ = 0;
  }

 private:
  void round(const RoundPages<T>& pages, int64_t at, int64_t tokens) {
    const int64_t head_dim = shape_.head_dim;
    for (int64_t n = 0; n < pages.count; n++) prefetch(pages.values[n], head_dim * kPage * sizeof(T));
#ifdef HEADRACE_AMX
    if constexpr (std::is_same_v<T, BFloat16>)
      if (has_tiles()) {
        tile_scores(queries_.data(), pages.keys, pages.count, head_dim, scores_, kRound);
        for (int r = 0; r < count_; r++) weigh(r, at, pages.count);
        tile_values(weights_, kRound, pages.values, pages.count, head_dim, found_.data());
        return;
      }
#endif
    constexpr int most = kMostTogether<T>;
    for (int first = 0; first < count_; first += most)
      with_constant<most>(std::min(most, count_ - first), [&](auto constant) {
        constexpr int R = decltype(constant)::value;
        score_by_registers<T, R>(&queries_[first * head_dim], pages, head_dim, scores_ + first * kRound);
        for (int r = first; r < first + R; r++) weigh(r, at, pages.count);
        sum_by_registers<T, R>(weights_ + first * kRound, pages, tokens, head_dim, &found_[first * head_dim]);
      });
  }

  // Turns a row's scores into weights, and rescales what was found if a better score came.
  void weigh(int r, int64_t at, int64_t num_pages) {
    const float lowest = -std::numeric_limits<float>::infinity();
    static const int32_t kCounted[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const IntLanes lane = load(kCounted);
    const int32_t from = (int32_t)std::min<int64_t>(std::max<int64_t>(oldest_[r] - at, 0), kRound);
    const int32_t to = (int32_t)std::max<int64_t>(std::min<int64_t>(newest_[r] - at, kRound), -1);
    float* scores = scores_ + r * kRound;
    Lanes best = broadcast(lowest);
    for (int64_t n = 0; n < num_pages; n++) {
      const IntLanes token = lane + (int32_t)(n * kPage);
      const Lanes score = load(scores + n * kPage) * scale_;
      const Lanes seen = select((token >= from) & (token <= to), score, broadcast(lowest));
      store(scores + n * kPage, seen);
      best = larger(best, seen);
    }
    const float new_best = std::max(best_[r], largest(best));
    const float reference = new_best == lowest ? 0.0f : new_best;
    Lanes sums = {};
    for (int64_t n = 0; n < num_pages; n++) {
      const Lanes weight = exponential(load(scores + n * kPage) - reference);
      store(weights_ + r * kRound + n * kPage, weight);
      sums += weight;
    }
    if (new_best != best_[r]) rescale(r, exponential(best_[r] - reference));
    total_[r] += sum(sums);
    best_[r] = new_best;
  }

  void rescale(int r, float factor) {
    total_[r] *= factor;
    float* found = &found_[r * shape_.head_dim];
    for (int64_t d = 0; d < shape_.head_dim; d += kLanes) store(found + d, load(found + d) * factor);
  }

  PageShape shape_;
  float scale_;
  std::vector<FactorOf<T>> queries_;
  std::vector<float> found_;
  int64_t oldest_[kMostQueries], newest_[kMostQueries];
  float* to_[kMostQueries];
  float best_[kMostQueries], total_[kMostQueries];
  alignas(64) float scores_[kMostQueries * kRound];
  alignas(64) FactorOf<T> weights_[kMostQueries * kRound] = {};
  int count_ = 0;
};

}  // namespace headrace
