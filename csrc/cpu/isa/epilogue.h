// The way of finished sums into the output's pixels.
#pragma once

#include "vector.h"

namespace clsd::cpu::CLSD_ISA {

namespace {

// What an epilogue does beside bias and scale. To ask for each would be most of the instructions of
// a pixel: there is code for each of these alone, and code that asks for all other cases.
enum class EpilogueKind { kPlain, kRelu, kResidual, kPositive, kAny };

template <EpilogueKind kKind>
struct KindConstant {
  static constexpr EpilogueKind value = kKind;
};

// Call visit(KindConstant) with the epilogue's.
template <class T, class Visit>
CLSD_INLINE void visit_kind(const TileEpilogue<T>& epilogue, const Visit& visit) {
  const bool residual = epilogue.residual.data, positive = epilogue.positive.data;
  if (epilogue.slopes || residual + positive + epilogue.relu > 1) {
    visit(KindConstant<EpilogueKind::kAny>{});
  } else if (residual) {
    visit(KindConstant<EpilogueKind::kResidual>{});
  } else if (positive) {
    visit(KindConstant<EpilogueKind::kPositive>{});
  } else if (epilogue.relu) {
    visit(KindConstant<EpilogueKind::kRelu>{});
  } else {
    visit(KindConstant<EpilogueKind::kPlain>{});
  }
}

// An epilogue at the pixels of a row, from some channels on.
template <EpilogueKind kKind, class T>
class RowEpilogue {
 public:
  CLSD_INLINE RowEpilogue(const PixelGrid<T>& output, const TileEpilogue<T>& epilogue, int64_t i,
                          int64_t channel)
      : epilogue_(epilogue),
        channel_(channel),
        // Minus zero: what it is added to stays as it is.
        bias_(epilogue.bias ? load(epilogue.bias + channel) : -Vec<T>{}),
        output_(opaque(pixel(output, i, 0) + channel)),
        output_column_(output.column) {
    if (reads_residual()) residual_ = opaque(pixel(epilogue.residual, i, 0) + channel);
    if (reads_positive()) positive_ = opaque(pixel(epilogue.positive, i, 0) + channel);
  }

  // Pixels are worked on in pieces of a row, so what comes next lies beyond the present piece, and
  // is requested while that is computed: no prefetcher of a processor sees so many short streams.
  CLSD_INLINE void prefetch(int64_t j) const {
    __builtin_prefetch(output_ + j * output_column_, 1);
    if (reads_residual()) __builtin_prefetch(residual_ + j * epilogue_.residual.column);
    if (reads_positive()) __builtin_prefetch(positive_ + j * epilogue_.positive.column);
  }

  // Store the sums of pixel j.
  CLSD_INLINE void store_pixel(int64_t j, Vec<T> value) const {
    const Vec<T> zero = {};
    value = (value + bias_) * epilogue_.scale;
    if (reads_residual()) value += load(residual_ + j * epilogue_.residual.column);
    if (kKind == EpilogueKind::kRelu || (kAsks && epilogue_.relu)) {
      value = value < 0 ? zero : value;  // a NaN is kept
    }
    if (kAsks && epilogue_.slopes) {
      value = value < 0 ? value * load(epilogue_.slopes + channel_) : value;
    }
    if (reads_positive()) {
      // Where that is a NaN, the value is kept.
      value = load(positive_ + j * epilogue_.positive.column) <= 0 ? zero : value;
    }
    store(output_ + j * output_column_, value);
  }

 private:
  static constexpr bool kAsks = kKind == EpilogueKind::kAny;

  CLSD_INLINE bool reads_residual() const {
    return kKind == EpilogueKind::kResidual || (kAsks && epilogue_.residual.data);
  }
  CLSD_INLINE bool reads_positive() const {
    return kKind == EpilogueKind::kPositive || (kAsks && epilogue_.positive.data);
  }

  const TileEpilogue<T>& epilogue_;
  int64_t channel_;
  Vec<T> bias_;
  T* output_;
  int64_t output_column_;
  const T* residual_ = nullptr;
  const T* positive_ = nullptr;
};

// Here and below, what says where things are is copied: a store could change what lies behind a
// reference, as far as the compiler knows, and it would load that again each time.
template <class T>
void finish(const PixelGrid<T>& output, const T* sums, int64_t sums_stride, int64_t pixels,
            int64_t channels, const TileEpilogue<T>& epilogue) {
  const PixelGrid<T> target = output;
  const TileEpilogue<T> last = epilogue;
  visit_kind(last, [&](auto kind) CLSD_ALWAYS_INLINE {
    for (int64_t p = 0; p < pixels; ++p) {
      for (int64_t v = 0; v < channels; v += kLanes<T>) {
        const RowEpilogue<kind.value, T> row(target, last, 0, v);
        if (v % kTileCols == 0) row.prefetch(p + pixels);
        row.store_pixel(p, load(sums + p * sums_stride + v));
      }
    }
  });
}

}  // namespace

}  // namespace clsd::cpu::CLSD_ISA
