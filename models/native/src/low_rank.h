// Low-rank adapters (LoRA): what an adapter adds to the result of a linear layer, for one row at a time. The order of the
// additions is fixed, so a row has the same bits alone and in every batch. The sums are float32; the weights have the
// format of the KV cache.
#pragma once

#include "linear.h"

namespace headrace {

// One adapted module: row (inputs) -> a (rank, inputs) -> b -> blocks of 16 results.
//   a   [rank][inputs], inputs padded to 64 with zeros
//   b   [block][rank][16], scaled
// Block n of the results begins at column `first + n * stride` of the linear layer that holds the module.
struct LowRank {
  const void* a;
  const void* b;
  int64_t rank;  // 0: the module is not adapted
  int64_t first, stride, blocks;
};

constexpr int64_t kMaxRank = 512;  // models/families/lora.py refuses more

enum Module { kQuery, kKey, kValue, kOut, kGate, kUp, kDown, kModules };

struct LayerAdapter {
  LowRank modules[kModules];
};

inline Floats load(const BFloat16* from) {
  float lanes[kLanes];
  for (int i = 0; i < kLanes; i++) lanes[i] = to_float(from[i]);
  return load(lanes);
}

// The dot product of a row and one row of `a`, in four sums, because one alone would wait for itself.
template <class T>
inline float dot(const float* row, const T* weights, int64_t inputs) {
  Floats sums[4] = {};
  for (int64_t k = 0; k < inputs; k += 4 * kLanes)
    for (int n = 0; n < 4; n++)
      sums[n] = multiply_add(load(row + k + n * kLanes), load(weights + k + n * kLanes), sums[n]);
  return reduce_add((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// Writes what one module adds to its columns of `to`. `row` is padded with zeros to `inputs`, a multiple of 64.
template <class T>
void write_low_rank(const LowRank& module, const float* row, int64_t inputs, float* to) {
  float inner[kMaxRank];
  for (int64_t r = 0; r < module.rank; r++) inner[r] = dot(row, (const T*)module.a + r * inputs, inputs);
  const T* weights = (const T*)module.b;
  for (int64_t block = 0; block < module.blocks; block++, weights += module.rank * kLanes) {
    Floats sum = {};
    for (int64_t r = 0; r < module.rank; r++) sum = multiply_add(inner[r], load(weights + r * kLanes), sum);
    store(to + module.first + block * module.stride, sum);
  }
}

}  // namespace headrace
