// Matrix products on Intel AMX tiles. Compiled only if the CPU has AMX, used only if Linux permits it.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)
#define HEADRACE_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <cstdint>

#include "simd.h"

namespace headrace {

constexpr int kTileRows = 16;  // row buffers are padded to a multiple; results of padding rows are ignored

#ifdef HEADRACE_AMX

inline bool has_amx() {
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return granted;
}

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Configures eight tiles of 16 rows of 64 bytes for the calling thread.
inline void configure_tiles_for_linear() {
  const TileConfig config;
  if (has_amx()) _tile_loadconfig(&config);
}

// As above, but tile 4 holds the softmax weights of the 16 tokens of a page, and tile 7 their values in 8 pairs.
inline void configure_tiles_for_attention() {
  TileConfig config;
  config.row_bytes[4] = 32;
  config.rows[7] = 8;
  if (has_amx()) _tile_loadconfig(&config);
}

inline void release_tiles() {
  if (has_amx()) _tile_release();
}

// T * 16 rows times a panel of 32 outputs. `out` is [T * 16][32].
template <int T>
void amx_gemm_bf16(const BFloat16* rows, int64_t stride, const BFloat16* panel, int64_t inputs, PrefetchSlice prefetch,
                   float* out) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < inputs; k += 32) {
    prefetch.begin_block();
    const BFloat16* block = panel + k * 32;
    _tile_loadd(4, rows + k, stride * 2);
    _tile_loadd(6, block, 64);
    _tile_loadd(7, block + 512, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (T == 2) {
      _tile_loadd(5, rows + kTileRows * stride + k, stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, out, 128);
  _tile_stored(1, out + kLanes, 128);
  if constexpr (T == 2) {
    _tile_stored(2, out + kTileRows * 32, 128);
    _tile_stored(3, out + kTileRows * 32 + kLanes, 128);
  }
}

// 64 inputs of T * 16 rows times 64 x 32 weights, in exact integers. `whole` is [T * 16][32].
template <int T>
void amx_gemm_int8_group(const int8_t* rows, int64_t stride, const int8_t* block, int32_t* whole) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_loadd(4, rows, stride);
  _tile_loadd(6, block, 64);
  _tile_loadd(7, block + 1024, 64);
  _tile_dpbssd(0, 4, 6);
  _tile_dpbssd(1, 4, 7);
  if constexpr (T == 2) {
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(5, rows + kTileRows * stride, stride);
    _tile_dpbssd(2, 5, 6);
    _tile_dpbssd(3, 5, 7);
  }
  _tile_stored(0, whole, 128);
  _tile_stored(1, whole + kLanes, 128);
  if constexpr (T == 2) {
    _tile_stored(2, whole + kTileRows * 32, 128);
    _tile_stored(3, whole + kTileRows * 32 + kLanes, 128);
  }
}

#else

inline bool has_amx() { return false; }
inline void configure_tiles_for_linear() {}
inline void configure_tiles_for_attention() {}
inline void release_tiles() {}

#endif

}  // namespace headrace
