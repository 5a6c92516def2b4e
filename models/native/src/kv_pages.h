// Pages of the KV cache, 16 tokens of one layer each, and the products with them.
//
//   float32    keys[page][kv head][head_dim][16 tokens]           values[page][kv head][16 tokens][head_dim]
//   bfloat16   keys[page][kv head][head_dim / 2][16 tokens][2]    values[page][kv head][8][head_dim][2 tokens]
//
// So 16 scores, or 16 dimensions of a value, are summed in parallel, with no reduction across lanes. The bfloat16
// instructions of the CPU multiply pairs.
#pragma once

#include "simd.h"
#include "bf16_dot.h"
#include "amx.h"

namespace headrace {

constexpr int kPage = 16;

struct PageShape {
  int64_t kv_heads, head_dim;

  // The offset of one head of one page, in numbers.
  int64_t offset(int64_t page, int64_t kv_head) const { return (page * kv_heads + kv_head) * head_dim * kPage; }
};

inline void prefetch(const void* from, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)from + at, 0, 2);
}

inline void store_key(const float* head, int64_t head_dim, int64_t token, float* page) {
  for (int64_t d = 0; d < head_dim; d++) page[d * kPage + token] = head[d];
}

inline void store_value(const float* head, int64_t head_dim, int64_t token, float* page) {
  std::memcpy(page + token * head_dim, head, head_dim * sizeof(float));
}

inline void store_key(const float* head, int64_t head_dim, int64_t token, BFloat16* page) {
  BFloat16 rounded[kLanes];
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    store(rounded, load(head + d));
    for (int i = 0; i < kLanes; i += 2) std::memcpy(page + ((d + i) / 2 * kPage + token) * 2, rounded + i, 4);
  }
}

inline void store_value(const float* head, int64_t head_dim, int64_t token, BFloat16* page) {
  BFloat16 rounded[kLanes];
  BFloat16* to = page + token / 2 * head_dim * 2 + token % 2;
  for (int64_t d = 0; d < head_dim; d += kLanes) {
    store(rounded, load(head + d));
    for (int i = 0; i < kLanes; i++) to[(d + i) * 2] = rounded[i];
  }
}

// Scores of R queries for N pages. `scores` is [R][stride].
template <int R, int N>
void score_pages(const float* queries, const float* const* keys, int64_t head_dim, float* scores, int64_t stride) {
  Floats sums[R][N] = {};
  for (int64_t d = 0; d < head_dim; d++) {
    for (int n = 0; n < N; n++) {
      const Floats key = load(keys[n] + d * kPage);
      for (int r = 0; r < R; r++) sums[r][n] = multiply_add(queries[r * head_dim + d], key, sums[r][n]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(scores + r * stride + n * kPage, sums[r][n]);
}

template <int R, int N>
void score_pages(const Bf16Operand* queries, const BFloat16* const* keys, int64_t head_dim, float* scores,
                 int64_t stride) {
  Floats sums[R][N] = {};
  for (int64_t d = 0; d < head_dim; d += 2) {
    for (int n = 0; n < N; n++) {
      const Bf16Pairs key(keys[n] + d * kPage);
      for (int r = 0; r < R; r++) sums[r][n] = dot_add(sums[r][n], queries + r * head_dim + d, key);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(scores + r * stride + n * kPage, sums[r][n]);
}

// Adds the weighted values of a round's tokens, for dimensions `d` up to `d + 16 * N`. `found` is [R][head_dim].
template <int R, int N>
void add_weighted_values(const float* weights, int64_t stride, const float* const* values, int64_t tokens,
                         int64_t head_dim, int64_t d, float* found) {
  Floats sums[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) sums[r][n] = load(found + r * head_dim + d + n * kLanes);
  for (int64_t t = 0; t < tokens; t++) {
    const float* from = values[t / kPage] + t % kPage * head_dim + d;
    for (int n = 0; n < N; n++) {
      const Floats value = load(from + n * kLanes);
      for (int r = 0; r < R; r++) sums[r][n] = multiply_add(weights[r * stride + t], value, sums[r][n]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(found + r * head_dim + d + n * kLanes, sums[r][n]);
}

template <int R, int N>
void add_weighted_values(const Bf16Operand* weights, int64_t stride, const BFloat16* const* values, int64_t tokens,
                         int64_t head_dim, int64_t d, float* found) {
  Floats sums[R][N];
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) sums[r][n] = load(found + r * head_dim + d + n * kLanes);
  for (int64_t t = 0; t < tokens; t += 2) {
    const BFloat16* from = values[t / kPage] + (t % kPage * head_dim + d * 2);
    for (int n = 0; n < N; n++) {
      const Bf16Pairs value(from + n * 2 * kLanes);
      for (int r = 0; r < R; r++) sums[r][n] = dot_add(sums[r][n], weights + r * stride + t, value);
    }
  }
  for (int r = 0; r < R; r++)
    for (int n = 0; n < N; n++) store(found + r * head_dim + d + n * kLanes, sums[r][n]);
}

#ifdef HEADRACE_AMX
// The same on AMX tiles, for 16 queries: `queries` is [16][head_dim], `scores` is [16][stride].
inline void amx_scores(const BFloat16* queries, const BFloat16* const* keys, int64_t pages, int64_t head_dim,
                       float* scores, int64_t stride) {
  for (int64_t n = 0; n < pages; n += 2) {
    const bool is_pair = n + 1 < pages;
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t d = 0; d < head_dim; d += 32) {
      _tile_loadd(5, queries + d, head_dim * 2);
      _tile_loadd(6, keys[n] + d * kPage, 64);
      _tile_dpbf16ps(0, 5, 6);
      if (is_pair) {
        _tile_loadd(3, keys[n + 1] + d * kPage, 64);
        _tile_dpbf16ps(1, 5, 3);
      }
    }
    _tile_stored(0, scores + n * kPage, stride * 4);
    if (is_pair) _tile_stored(1, scores + (n + 1) * kPage, stride * 4);
  }
}

// 16 * N dimensions of all pages of a round.
template <int N>
void amx_weighted_values_at(const BFloat16* weights, int64_t stride, const BFloat16* const* values, int64_t pages,
                            int64_t head_dim, int64_t d, float* found) {
  _tile_loadd(0, found + d, head_dim * 4);
  if constexpr (N == 4) {
    _tile_loadd(1, found + d + 16, head_dim * 4);
    _tile_loadd(2, found + d + 32, head_dim * 4);
    _tile_loadd(3, found + d + 48, head_dim * 4);
  }
  for (int64_t n = 0; n < pages; n++) {
    const BFloat16* from = values[n] + d * 2;
    _tile_loadd(4, weights + n * kPage, stride * 2);
    _tile_loadd(7, from, head_dim * 4);
    _tile_dpbf16ps(0, 4, 7);
    if constexpr (N == 4) {
      _tile_loadd(7, from + 32, head_dim * 4);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(7, from + 64, head_dim * 4);
      _tile_dpbf16ps(2, 4, 7);
      _tile_loadd(7, from + 96, head_dim * 4);
      _tile_dpbf16ps(3, 4, 7);
    }
  }
  _tile_stored(0, found + d, head_dim * 4);
  if constexpr (N == 4) {
    _tile_stored(1, found + d + 16, head_dim * 4);
    _tile_stored(2, found + d + 32, head_dim * 4);
    _tile_stored(3, found + d + 48, head_dim * 4);
  }
}

inline void amx_weighted_values(const BFloat16* weights, int64_t stride, const BFloat16* const* values, int64_t pages,
                                int64_t head_dim, float* found) {
  int64_t d = 0;
  for (; d + 64 <= head_dim; d += 64) amx_weighted_values_at<4>(weights, stride, values, pages, head_dim, d, found);
  for (; d < head_dim; d += 16) amx_weighted_values_at<1>(weights, stride, values, pages, head_dim, d, found);
}
#endif

}  // namespace headrace
