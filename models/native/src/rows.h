// Rows of activations: buffers, the formats that linear layers read, and the normalisation before them.
#pragma once

#include <cmath>
#include <vector>

#include "lanes.h"
#include "linear.h"

namespace headrace {

inline int64_t padded(int64_t count) { return (count + kGroup - 1) / kGroup * kGroup; }

// A buffer of rows that any linear layer may read. New memory is zero, and with it the padding.
class RowBuffer {
 public:
  void fit(int64_t rows, int64_t inputs) {
    stride_ = padded(inputs);
    const size_t numbers = size_t(rows + 2 * kTileRows) * stride_;
    if (numbers <= data_.size()) return;
    data_.assign(numbers, 0.0f);
    scales_.assign(numbers / kGroup, 0.0f);
    sums_.assign(numbers / kGroup, 0);
  }

  Rows rows() { return {data_.data(), scales_.data(), sums_.data(), stride_}; }
  float* row(int64_t index) { return data_.data() + index * stride_; }

 private:
  std::vector<float> data_, scales_;
  std::vector<int32_t> sums_;
  int64_t stride_ = 0;
};

// A row in 8 bits, each group spread first, as the weights are: an outlier would take the scale from the other 63, and
// Hadamard's matrix shares it among all. (It is orthogonal, so products stay what they were; models/tensors/quantised.py.)
inline void quantise_row(const float* row, const Rows& rows, int64_t index) {
  using Group = Memory<Fitting<float, kGroup>::type>;
  const int64_t groups = rows.stride / kGroup;
  int8_t* to = rows.row<int8_t>(index);
  for (int64_t group = 0; group < groups; group++, row += kGroup, to += kGroup) {
    float from[kGroup];
    Group::store(from, hadamard(Group::load(row)) * 0.125f);  // of length one: 1 / sqrt(64)
    Lanes most = {};
    for (int i = 0; i < kGroup; i += kLanes) most = larger(most, absolute(load(from + i)));
    const float scale = largest(most) / 127.0f;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    IntLanes total = {};
    for (int i = 0; i < kGroup; i += kLanes) {
      const IntLanes whole = nearest(load(from + i) * inverse);
      store(to + i, whole);
      total += whole;
    }
    rows.scales[index * groups + group] = scale;
    rows.sums[index * groups + group] = sum(total);
  }
}

// Writes a row of floats, padding included, in the format that the next linear layer reads.
inline void write_row(Format format, const float* from, const Rows& rows, int64_t index) {
  if (format == Format::kInt8) return quantise_row(from, rows, index);
  for (int64_t i = 0; i < rows.stride; i += kLanes) {
    if (format == Format::kBFloat16)
      store(rows.row<Factor>(index) + i, load(from + i));
    else
      store(rows.row<float>(index) + i, load(from + i));
  }
}

// Root mean square of `count` numbers, in an order of its own.
inline float inverse_rms(const float* from, int64_t count, double eps) {
  Lanes squares = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Lanes x = load(from + i);
    squares = multiply_add(x, x, squares);
  }
  float total = sum(squares);
  for (; i < count; i++) total += from[i] * from[i];
  return 1.0f / std::sqrt(total / count + (float)eps);
}

inline void normalise(const float* from, const float* weight, int64_t count, double eps, float* to) {
  const float factor = inverse_rms(from, count, eps);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i) * factor * load(weight + i));
  for (; i < count; i++) to[i] = from[i] * factor * weight[i];
}

}  // namespace headrace
