// The primitives that lanes execute together: ldmatrix, stmatrix and mma, after the PTX manual's fragments.
#include <torch/headeronly/util/Half.h>

#include "emulation.h"

namespace clsd::cuda {

using emulation::collective;
using emulation::kWarpLanes;

float to_float(Bf16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

float to_float(Fp16 value) {
  static const auto table = [] {
    auto numbers = new float[1 << 16];
    for (int bits = 0; bits < 1 << 16; ++bits) {
      numbers[bits] =
          torch::headeronly::detail::fp16_ieee_to_fp32_value(static_cast<uint16_t>(bits));
    }
    return numbers;
  }();
  return table[value.bits];
}

template <>
Bf16 from_float(float value) {
  if (std::isnan(value)) return {0x7FFF};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  bits += 0x7FFF + (bits >> 16 & 1);  // to nearest, ties to even
  return {static_cast<uint16_t>(bits >> 16)};
}

template <>
Fp16 from_float(float value) {
  return {torch::headeronly::detail::fp16_ieee_from_fp32_value(value)};
}

namespace {

struct MatrixLoad {
  uint32_t* registers;
  uint32_t offset;
};

// 8x8 matrix `index` of four, row by row.
void read_matrix(void* const* arguments, int index, uint16_t (&matrix)[8][8]) {
  for (int row = 0; row < 8; ++row) {
    const auto& load = *static_cast<const MatrixLoad*>(arguments[8 * index + row]);
    std::memcpy(matrix[row], emulation::shared_at(load.offset, 16, "ldmatrix"), 16);
  }
}

template <bool kTransposed>
void load_matrices(void* const* arguments) {
  for (int index = 0; index < 4; ++index) {
    uint16_t matrix[8][8];
    read_matrix(arguments, index, matrix);
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const uint32_t low = kTransposed ? matrix[column][row] : matrix[row][column];
      const uint32_t high = kTransposed ? matrix[column + 1][row] : matrix[row][column + 1];
      static_cast<const MatrixLoad*>(arguments[lane])->registers[index] = low | high << 16;
    }
  }
}

struct MatrixStore {
  const uint32_t* registers;
  uint32_t offset;
};

// Row r of matrix i goes where lane 8 i + r says.
void store_transposed(void* const* arguments) {
  const auto lane_of = [&](int lane) -> const MatrixStore& {
    return *static_cast<const MatrixStore*>(arguments[lane]);
  };
  for (int index = 0; index < 4; ++index) {
    uint16_t matrix[8][8];
    for (int lane = 0; lane < kWarpLanes; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const uint32_t pair = lane_of(lane).registers[index];
      matrix[column][row] = static_cast<uint16_t>(pair);
      matrix[column + 1][row] = static_cast<uint16_t>(pair >> 16);
    }
    for (int row = 0; row < 8; ++row) {
      const uint32_t offset = lane_of(8 * index + row).offset;
      std::memcpy(emulation::shared_at(offset, 16, "stmatrix"), matrix[row], 16);
      emulation::mark_written(offset, 16);
    }
  }
}

struct Product {
  float* sums;
  const uint32_t *a, *b;
};

template <class T>
void multiply(void* const* arguments) {
  float a[16][16], b[16][8], sums[16][8];
  const auto lane_of = [&](int lane) -> const Product& {
    return *static_cast<const Product*>(arguments[lane]);
  };
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    const Product& product = lane_of(lane);
    for (int i = 0; i < 4; ++i) {
      const float2 numbers = unpack<T>(product.a[i]);
      float* to = &a[group + 8 * (i % 2)][pair + 8 * (i / 2)];
      to[0] = numbers.x, to[1] = numbers.y;
    }
    for (int i = 0; i < 2; ++i) {
      const float2 numbers = unpack<T>(product.b[i]);
      b[pair + 8 * i][group] = numbers.x, b[pair + 8 * i + 1][group] = numbers.y;
    }
  }
  for (int row = 0; row < 16; ++row) {
    for (float& sum : sums[row]) sum = 0;
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) sums[row][column] += a[row][k] * b[k][column];
    }
  }
  for (int lane = 0; lane < kWarpLanes; ++lane) {
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int i = 0; i < 4; ++i) {
      lane_of(lane).sums[i] += sums[group + 8 * (i / 2)][pair + i % 2];
    }
  }
}

}  // namespace

void ldmatrix(uint32_t (&registers)[4], uint32_t offset) {
  MatrixLoad load{registers, offset};
  collective("ldmatrix", kWarpLanes, &load, load_matrices<false>);
}

void ldmatrix_transposed(uint32_t (&registers)[4], uint32_t offset) {
  MatrixLoad load{registers, offset};
  collective("ldmatrix_transposed", kWarpLanes, &load, load_matrices<true>);
}

void stmatrix_transposed(uint32_t offset, const uint32_t (&registers)[4]) {
  MatrixStore store{registers, offset};
  collective("stmatrix_transposed", kWarpLanes, &store, store_transposed);
}

template <class T>
void mma(float (&sums)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Product product{sums, a, b};
  collective("mma", kWarpLanes, &product, [](void* const* arguments) {
    ++emulation::counts.mma;
    multiply<T>(arguments);
  });
}

template void mma<Bf16>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]);
template void mma<Fp16>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]);

}  // namespace clsd::cuda
