// Causal attention over the paged KV cache, for rows of one request that share a key-value head.
//
// Online softmax (Milakov & Gimelshein 2018) in rounds of 128 tokens from position 0 on, in every pass. So the order of
// a row's additions depends only on its position. Scores and sums are float32. With a bfloat16 cache, queries and
// softmax weights are rounded to bfloat16 too, because the CPU multiplies pairs of them.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "simd.h"
#include "linear.h"
#include "kv_pages.h"
#include "amx.h"

namespace headrace {

constexpr int kRoundTokens = 128;
constexpr int kRoundPages = kRoundTokens / kPage;
constexpr int kMaxQueries = 64;  // they share what a round reads from the cache
constexpr int kQueryTile = 16;   // of these, the queries that are computed together

// The pages of one round: pointers to the keys and values of one head.
template <class T>
struct RoundPages {
  const T* keys[kRoundPages];
  const T* values[kRoundPages];
  int64_t count;
};

// The most queries with sums that stay in registers, for a cache of T.
template <class T>
constexpr int kMaxSimdRows = std::is_same_v<T, BFloat16> ? kMaxRowsBFloat16 : kMaxRows;

// The number of pages, or of vectors of 16 dimensions, computed at once for R rows: enough independent sums to keep the
// CPU busy.
template <class T, int R>
constexpr int kVectorsAtOnce = 4 * R <= kMaxSimdRows<T> ? 4 : 2 * R <= kMaxSimdRows<T> ? 2 : 1;

// The type that the numbers of a cache of T are multiplied with.
template <class T>
using OperandOf = std::conditional_t<std::is_same_v<T, BFloat16>, Bf16Operand, T>;

template <class T, int R>
void simd_scores(const OperandOf<T>* queries, const RoundPages<T>& pages, int64_t head_dim, float* scores) {
  constexpr int N = kVectorsAtOnce<T, R>;
  int64_t n = 0;
  for (; n + N <= pages.count; n += N)
    score_pages<R, N>(queries, pages.keys + n, head_dim, scores + n * kPage, kRoundTokens);
  for (; n < pages.count; n++)
    score_pages<R, 1>(queries, pages.keys + n, head_dim, scores + n * kPage, kRoundTokens);
}

template <class T, int R>
void simd_weighted_values(const OperandOf<T>* weights, const RoundPages<T>& pages, int64_t tokens, int64_t head_dim,
                          float* found) {
  constexpr int N = kVectorsAtOnce<T, R>;
  int64_t d = 0;
  for (; d + N * kLanes <= head_dim; d += N * kLanes)
    add_weighted_values<R, N>(weights, kRoundTokens, pages.values, tokens, head_dim, d, found);
  for (; d < head_dim; d += kLanes)
    add_weighted_values<R, 1>(weights, kRoundTokens, pages.values, tokens, head_dim, d, found);
}

struct alignas(64) CacheLine {
  char bytes[64];
};

// Attention of up to 64 queries for one key-value head. Scratch memory of one thread.
template <class T>
class Attention {
 public:
  Attention(int64_t kv_heads, int64_t head_dim, float scale)
      : shape_{kv_heads, head_dim},
        scale_(scale),
        lines_(kMaxQueries * head_dim * (sizeof(OperandOf<T>) + sizeof(float)) / sizeof(CacheLine)),
        output_((float*)lines_.data()),
        queries_((OperandOf<T>*)(output_ + kMaxQueries * head_dim)) {}

  bool full() const { return count_ == kMaxQueries; }

  // Adds a query that sees the positions `oldest` to `newest`. run() writes its result to `to`.
  void add(const float* query, int64_t oldest, int64_t newest, float* to) {
    for (int64_t d = 0; d < shape_.head_dim; d += kLanes)
      store(&queries_[count_ * shape_.head_dim + d], load(query + d));
    oldest_[count_] = oldest;
    newest_[count_] = newest;
    destination_[count_] = to;
    count_++;
  }

  // Computes the added queries. `keys` and `values` are those of the layer.
  void run(const T* keys, const T* values, const int32_t* table, int64_t kv_head) {
    const int64_t oldest = *std::min_element(oldest_, oldest_ + count_);
    const int64_t newest = *std::max_element(newest_, newest_ + count_);
    std::fill_n(output_, count_ * shape_.head_dim, 0.0f);
    for (int r = 0; r < count_; r++) max_[r] = -std::numeric_limits<float>::infinity(), denominator_[r] = 0;
    for (int64_t at = oldest / kRoundTokens * kRoundTokens; at <= newest; at += kRoundTokens) {
      RoundPages<T> pages;
      const int64_t tokens = std::min<int64_t>(kRoundTokens, newest - at + 1);
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
        store(destination_[r] + d, load(&output_[r * shape_.head_dim + d]) / denominator_[r]);
    count_ = 0;
  }

 private:
  void round(const RoundPages<T>& pages, int64_t at, int64_t tokens) {
    const int64_t head_dim = shape_.head_dim;
    for (int64_t n = 0; n < pages.count; n++) prefetch(pages.values[n], head_dim * kPage * sizeof(T));
    for (int first = 0; first < count_; first += kQueryTile)
      tile(pages, first, std::min(kQueryTile, count_ - first), at, tokens);
  }

  // One round of the queries from `first` on.
  void tile(const RoundPages<T>& pages, int first, int count, int64_t at, int64_t tokens) {
    const int64_t head_dim = shape_.head_dim;
    const OperandOf<T>* queries = &queries_[first * head_dim];
    float* output = &output_[first * head_dim];
#ifdef HEADRACE_AMX
    if constexpr (std::is_same_v<T, BFloat16>)
      if (has_amx()) {
        amx_scores(queries, pages.keys, pages.count, head_dim, scores_, kRoundTokens);
        for (int r = 0; r < count; r++) softmax_weights(first + r, r, at, pages.count);
        amx_weighted_values(weights_, kRoundTokens, pages.values, pages.count, head_dim, output);
        return;
      }
#endif
    constexpr int most = kMaxSimdRows<T>;
    for (int from = 0; from < count; from += most)
      with_constant<most>(std::min(most, count - from), [&](auto constant) {
        constexpr int R = decltype(constant)::value;
        simd_scores<T, R>(queries + from * head_dim, pages, head_dim, scores_);
        for (int r = 0; r < R; r++) softmax_weights(first + from + r, r, at, pages.count);
        simd_weighted_values<T, R>(weights_, pages, tokens, head_dim, output + from * head_dim);
      });
  }

  // Turns the scores of query `r`, which lie in `row`, into softmax weights. If the maximum grows, rescales the earlier
  // sums.
  void softmax_weights(int r, int row, int64_t at, int64_t num_pages) {
    const float lowest = -std::numeric_limits<float>::infinity();
    const int64_t oldest = std::clamp<int64_t>(oldest_[r] - at, 0, kRoundTokens);
    const int64_t newest = std::clamp<int64_t>(newest_[r] - at, -1, kRoundTokens);
    float* scores = scores_ + row * kRoundTokens;
    Floats best = broadcast(lowest);
    for (int64_t n = 0; n < num_pages; n++) {
      const int64_t first = n * kPage;
      Floats score = load(scores + first) * scale_;
      if (first < oldest || first + kPage - 1 > newest) score = hide(score, oldest - first, newest - first);
      store(scores + first, score);
      best = elementwise_max(best, score);
    }
    const float new_best = std::max(max_[r], reduce_max(best));
    const float reference = new_best == lowest ? 0.0f : new_best;
    Floats sums = {};
    for (int64_t n = 0; n < num_pages; n++) {
      const Floats weight = exponential(load(scores + n * kPage) - reference);
      store(weights_ + row * kRoundTokens + n * kPage, weight);
      sums += weight;
    }
    if (new_best != max_[r]) rescale(r, exponential(max_[r] - reference));
    denominator_[r] += reduce_add(sums);
    max_[r] = new_best;
  }

  // Sets the scores of a page to -infinity but for those from `oldest` to `newest`.
  static Floats hide(Floats score, int64_t oldest, int64_t newest) {
    static const int32_t kCounted[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Ints lane = load(kCounted);
    return select((lane >= (int32_t)oldest) & (lane <= (int32_t)newest), score,
                  broadcast(-std::numeric_limits<float>::infinity()));
  }

  void rescale(int r, float factor) {
    denominator_[r] *= factor;
    float* found = &output_[r * shape_.head_dim];
    for (int64_t d = 0; d < shape_.head_dim; d += kLanes) store(found + d, load(found + d) * factor);
  }

  PageShape shape_;
  float scale_;
  std::vector<CacheLine> lines_;  // tiles are loaded and stored faster if no row of them crosses a cache line
  float* output_;
  OperandOf<T>* queries_;
  int64_t oldest_[kMaxQueries], newest_[kMaxQueries];
  float* destination_[kMaxQueries];
  float max_[kMaxQueries], denominator_[kMaxQueries];
  alignas(64) float scores_[kQueryTile * kRoundTokens];
  alignas(64) OperandOf<T> weights_[kQueryTile * kRoundTokens] = {};
  int count_ = 0;
};

}  // namespace headrace
