#include "../ops.h"
#include "distances.h"

namespace clsd::cpu {

namespace {

void check_distances(const char* op, const Tensor& anchor, const Tensor& positive,
                     const std::optional<Tensor>& negatives) {
  check_rows(op, "anchor", anchor);
  check_shape(op, "positive", positive, shape_of(anchor));
  check_like(op, "positive", anchor, positive);
  if (!negatives) {
    check(anchor.size(1) != 1, op, "two rows or given negatives", "1 row");
    return;
  }
  check_rows(op, "negatives", *negatives);
  check(negatives->size(1) > 0, op, "at least 1 row of negatives", "0");
  check_shape(op, "negatives", *negatives, {anchor.size(0), negatives->size(1), anchor.size(2)});
  check_like(op, "negatives", anchor, *negatives);
}

// Sum of absolute differences of anchor i and positive i.
template <class S>
double paired_distance(const FeatureRows<const S>& anchor, const FeatureRows<const S>& positive,
                       int64_t b, int64_t i) {
  double sum = 0;
  for (int64_t d = 0; d < anchor.features; ++d) {
    sum += std::abs(static_cast<double>(anchor.row(b, i)[d * anchor.stride_d]) -
                    static_cast<double>(positive.row(b, i)[d * positive.stride_d]));
  }
  return sum;
}

// Distances of one batch entry: to the positive, and mean over the negatives, of each row.
template <class S>
void distances(const FeatureRows<const S>& anchor, const FeatureRows<const S>& positive,
               const std::optional<FeatureRows<const S>>& negatives, int64_t b,
               Accumulator<S>* to_positive, Accumulator<S>* to_negatives) {
  using T = Accumulator<S>;
  const auto& keys = negatives ? *negatives : positive;
  LargeVector<double> table(static_cast<size_t>(anchor.count * keys.count));
  DistanceTable<S>(anchor, keys, b).compute([&](int64_t i, int64_t j, double distance) {
    table[i * keys.count + j] = distance;
  });
  const int64_t others = negatives ? keys.count : keys.count - 1;
  for (int64_t i = 0; i < anchor.count; ++i) {
    double sum = 0;
    for (int64_t j = 0; j < keys.count; ++j) {
      const double distance = table[i * keys.count + j];
      // The own one times 0, as in PyTorch: it may be infinite.
      sum += negatives || i != j ? distance : 0 * distance;
    }
    const double own =
        negatives ? paired_distance(anchor, positive, b, i) : table[i * keys.count + i];
    const auto features = static_cast<double>(anchor.features);
    to_positive[i] = static_cast<T>(own / features);
    to_negatives[i] = static_cast<T>(sum / static_cast<double>(others) / features);
  }
}

// Gradients of the distances' sums of absolute differences, for one row.
struct RowWeights {
  double positive, negative;

  RowWeights(double grad_loss, double to_positive, double to_negatives, double eps,
             int64_t features, int64_t others) {
    positive = grad_loss / (to_negatives + eps) / static_cast<double>(features);
    negative = -positive * to_positive / (to_negatives + eps) / static_cast<double>(others);
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> distance_ratio_loss(Tensor anchor, Tensor positive,
                                                       std::optional<Tensor> negatives,
                                                       double eps) {
  const char* op = "distance_ratio_loss";
  check_distances(op, anchor, positive, negatives);
  Tensor loss = empty(anchor, {anchor.size(0), anchor.size(1)});
  Tensor to_positive = empty_statistic(anchor), to_negatives = empty_statistic(anchor);
  dispatch(op, anchor.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    const auto anchors = feature_rows<const S>(anchor);
    const auto positives = feature_rows<const S>(positive);
    std::optional<FeatureRows<const S>> negative_rows;
    if (negatives) negative_rows = feature_rows<const S>(*negatives);
    const int64_t count = anchor.size(1);
    for (int64_t b = 0; b < anchor.size(0); ++b) {
      T* own = data<T>(to_positive) + b * count;
      T* others = data<T>(to_negatives) + b * count;
      distances<S>(anchors, positives, negative_rows, b, own, others);
      for (int64_t i = 0; i < count; ++i) {
        const double ratio = static_cast<double>(own[i]) / (static_cast<double>(others[i]) + eps);
        data<S>(loss)[b * count + i] = static_cast<S>(ratio);
      }
    }
  });
  return {loss, to_positive, to_negatives};
}

std::tuple<Tensor, Tensor, Tensor> distance_ratio_loss_backward(
    Tensor grad_loss, Tensor positive_distance, Tensor negative_distance, Tensor anchor,
    Tensor positive, std::optional<Tensor> negatives, double eps) {
  const char* op = "distance_ratio_loss_backward";
  check_distances(op, anchor, positive, negatives);
  check_shape(op, "grad_loss", grad_loss, {anchor.size(0), anchor.size(1)});
  check_like(op, "grad_loss", anchor, grad_loss);
  check_statistic(op, "positive_distance", anchor, positive_distance);
  check_statistic(op, "negative_distance", anchor, negative_distance);
  Tensor grad_anchor = empty(anchor, shape_of(anchor));
  Tensor grad_positive = empty(anchor, shape_of(anchor));
  Tensor grad_negatives = negatives ? empty(anchor, shape_of(*negatives)) : absent(anchor);
  dispatch(op, anchor.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    const auto anchors = feature_rows<const S>(anchor);
    const auto positives = feature_rows<const S>(positive);
    const auto keys = negatives ? feature_rows<const S>(*negatives) : positives;
    const int64_t others = negatives ? keys.count : keys.count - 1;
    const int64_t count = anchors.count;
    for (int64_t b = 0; b < anchors.batch; ++b) {
      LargeVector<double> table(static_cast<size_t>(count * keys.count));
      LargeVector<double> own(static_cast<size_t>(count));
      for (int64_t i = 0; i < count; ++i) {
        const S* grads = const_data<S>(grad_loss) + b * grad_loss.stride(0);
        const RowWeights weights(static_cast<double>(grads[i * grad_loss.stride(1)]),
                                 const_data<T>(positive_distance)[b * count + i],
                                 const_data<T>(negative_distance)[b * count + i], eps,
                                 anchors.features, others);
        std::fill_n(table.begin() + i * keys.count, keys.count, weights.negative);
        own[i] = weights.positive;
        if (!negatives) table[i * keys.count + i] = own[i];
      }
      std::optional<PairedDistance<S>> paired;
      if (negatives) {
        paired.emplace(PairedDistance<S>{
            .weight = own, .rows = positives, .grad = feature_rows<S>(grad_positive)});
      }
      const auto& grad_keys = negatives ? grad_negatives : grad_positive;
      distance_table_backward<S>(table, anchors, keys, b, feature_rows<S>(grad_anchor),
                                 feature_rows<S>(grad_keys), paired);
    }
  });
  return {grad_anchor, grad_positive, grad_negatives};
}

}  // namespace clsd::cpu
