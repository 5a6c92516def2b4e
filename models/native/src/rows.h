// Rows of activations: buffers, the number formats that linear layers read, and RMS normalisation.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "simd.h"
#include "linear.h"

namespace headrace {

inline int64_t padded(int64_t count) { return (count + kGroup - 1) / kGroup * kGroup; }

// A buffer of rows in any format of a linear layer, in huge pages if Linux provides them: consecutive rows are often in
// different small pages, and a phase writes a few numbers to each of many rows. New memory is zero, so the padding is too.
class RowBuffer {
 public:
  void fit(int64_t rows, int64_t inputs) {
    stride_ = padded(inputs);
    const size_t numbers = size_t(rows + 2 * kTileRows) * stride_;
    if (numbers <= size_) return;
    data_ = allocate<float>(numbers);
    scales_ = allocate<float>(numbers / kGroup);
    sums_ = allocate<int32_t>(numbers / kGroup);
    size_ = numbers;
  }

  Rows rows() { return {data_.get(), scales_.get(), sums_.get(), stride_}; }
  float* row(int64_t index) { return data_.get() + index * stride_; }

 private:
  template <class T>
  using Memory = std::unique_ptr<T[], decltype(&std::free)>;

  template <class T>
  static Memory<T> allocate(size_t count) {
    constexpr size_t kHugePage = 2 << 20;
    const size_t bytes = (count * sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;
    void* memory = std::aligned_alloc(kHugePage, bytes);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, bytes);
    return {(T*)memory, &std::free};
  }

  Memory<float> data_{nullptr, &std::free}, scales_{nullptr, &std::free};
  Memory<int32_t> sums_{nullptr, &std::free};
  size_t size_ = 0;
  int64_t stride_ = 0;
};

// Quantises a row to 8 bits. Each group of 64 passes a Hadamard transform first, as the weights did: it spreads an
// outlier, which would otherwise set the scale for the other 63. The transform is orthogonal, so products do not change
// (models/tensors/quantised.py).
inline void quantise_row(const float* row, const Rows& rows, int64_t index) {
  using Group = Unaligned<VecOf<float, kGroup>::type>;
  const int64_t groups = rows.stride / kGroup;
  int8_t* to = rows.row<int8_t>(index);
  for (int64_t group = 0; group < groups; group++, row += kGroup, to += kGroup) {
    float from[kGroup];
    Group::store(from, hadamard(Group::load(row)) * 0.125f);  // normalised: 1 / sqrt(64)
    Floats most = {};
    for (int i = 0; i < kGroup; i += kLanes) most = elementwise_max(most, absolute(load(from + i)));
    const float scale = reduce_max(most) / 127.0f;
    const float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    Ints total = {};
    for (int i = 0; i < kGroup; i += kLanes) {
      const Ints whole = round_to_int(load(from + i) * inverse);
      store(to + i, whole);
      total += whole;
    }
    rows.scales[index * groups + group] = scale;
    rows.sums[index * groups + group] = reduce_add(total);
  }
}

// Writes a row of floats, padding included, in the format of the next linear layer.
inline void write_row(Format format, const float* from, const Rows& rows, int64_t index) {
  if (format == Format::kInt8) return quantise_row(from, rows, index);
  for (int64_t i = 0; i < rows.stride; i += kLanes) {
    if (format == Format::kBFloat16)
      store(rows.row<Bf16Operand>(index) + i, load(from + i));
    else
      store(rows.row<float>(index) + i, load(from + i));
  }
}

// 1 / root mean square of `count` numbers. The order of the additions is fixed.
inline float inverse_rms(const float* from, int64_t count, double eps) {
  Floats squares = {};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const Floats x = load(from + i);
    squares = multiply_add(x, x, squares);
  }
  float total = reduce_add(squares);
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
