#include <numeric>

#include "../ops.h"
#include "info_nce_backward.h"
#include "info_nce_forward.h"

namespace clsd::cpu {

namespace {

Shape loss_shape(const Tensor& query, const std::string& reduction) {
  return reduction == "none" ? Shape{query.size(0), query.size(1)} : Shape{};
}

template <class S, class T>
void reduce(S* target, const LargeVector<T>& losses, const std::string& reduction) {
  if (reduction == "none") {
    store_row(target, losses.data(), static_cast<int64_t>(losses.size()));
    return;
  }
  const double sum = std::accumulate(losses.begin(), losses.end(), 0.0);
  *target = static_cast<S>(reduction == "mean" ? sum / static_cast<double>(losses.size()) : sum);
}

void check_reduction(const char* op, const std::string& reduction) {
  check(reduction == "none" || reduction == "mean" || reduction == "sum", op,
        "reduction none, mean or sum", reduction);
}

// The gradients of the inputs that a call has: of query, positive_key, negative_keys and
// learned_temperature.
struct Gradients {
  std::vector<Tensor> all;
  bool in_batch, temperature;

  explicit Gradients(const Inputs& inputs)
      : in_batch(inputs.in_batch()), temperature(inputs.learned_temperature) {
    all.reserve(4);
    for (const Tensor* input : {&inputs.query, &inputs.positive_key}) add(*input);
    if (inputs.negative_keys) add(*inputs.negative_keys);
    if (inputs.learned_temperature) add(*inputs.learned_temperature);
  }

  // Compute them: with `run`, called with each round and with what differentiates it.
  template <class S, class Run>
  void compute(const Contrast<S>& contrast, const LossGradient<S>& grad_loss,
               const SavedStatistics<const Accumulator<S>>& saved, const Run& run) const {
    using T = Accumulator<S>;
    const auto key_output = feature_rows<S>(all[in_batch ? 1 : 2]);
    const KeyGradients<S> key_grads(key_output);
    const InfoNceBackward<S> backward{.contrast = contrast,
                                      .key_grads = key_grads,
                                      .grad_loss = grad_loss,
                                      .saved = saved,
                                      .grad_query = feature_rows<S>(all[0]),
                                      .grad_positive = feature_rows<S>(all[1])};
    if (contrast.query.count == 0) key_grads.clear();  // no round writes them
    for_rounds(contrast, [&](const Round<S>& round) { run(round, backward); });
    backward.finish_keys(key_output);
    if (temperature) {
      *data<T>(all.back()) = temperature_grad(contrast, grad_loss, saved.spread);
    }
  }

 private:
  void add(const Tensor& input) { all.push_back(empty(input, shape_of(input))); }
};

}  // namespace

std::tuple<Tensor, std::vector<Tensor>> info_nce(Tensor query, Tensor positive_key,
                                                 std::optional<Tensor> negative_keys,
                                                 std::optional<Tensor> mask,
                                                 std::optional<Tensor> labels,
                                                 std::optional<Tensor> learned_temperature,
                                                 double temperature, std::string reduction,
                                                 bool save_gradients) {
  const char* op = "info_nce";
  const Inputs inputs{.query = query,
                      .positive_key = positive_key,
                      .negative_keys = negative_keys,
                      .mask = mask,
                      .labels = labels,
                      .learned_temperature = learned_temperature,
                      .temperature = temperature};
  inputs.check_all(op);
  check_reduction(op, reduction);
  check(!save_gradients || reduction != "none", op, "a reduction to save gradients of", "none");
  const int64_t count = query.size(0) * query.size(1);
  Tensor loss = empty(query, loss_shape(query, reduction));
  std::optional<Gradients> grads;
  std::vector<Tensor> statistics;
  if (save_gradients) {
    grads.emplace(inputs);
  } else {
    statistics.push_back(empty_statistic(query, {3}));
  }
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    LargeVector<T> losses(static_cast<size_t>(count)), scratch;
    if (grads) scratch.resize(static_cast<size_t>(3 * count));
    const SavedStatistics<T> saved(grads ? scratch.data() : data<T>(statistics[0]), count);
    const Contrast<S> contrast(inputs, save_gradients);
    const InfoNceForward<S> forward{contrast, losses.data(), saved};
    if (grads) {
      const LossGradient<S> grad_loss(nullptr, reduction, count);
      grads->compute(contrast, grad_loss, {scratch.data(), count},
                     [&](const Round<S>& round, const InfoNceBackward<S>& backward) {
        Workspace workspace;
        const int64_t tasks = round.entries * contrast.plan.chunks;
        StoredTables<T> stored;
        stored.memory =
            workspace.take<T>(tasks * StoredTables<T>::size(contrast.plan, round.width));
        forward(round, stored);
        stored.filled = true;
        backward(round, stored);
      });
    } else {
      for_rounds(contrast, [&](const Round<S>& round) { forward(round); });
    }
    reduce(data<S>(loss), losses, reduction);
  });
  return {loss, grads ? std::move(grads->all) : std::move(statistics)};
}

std::vector<Tensor> info_nce_backward(Tensor grad_loss, Tensor statistics, Tensor query,
                                      Tensor positive_key, std::optional<Tensor> negative_keys,
                                      std::optional<Tensor> mask, std::optional<Tensor> labels,
                                      std::optional<Tensor> learned_temperature, double temperature,
                                      std::string reduction) {
  const char* op = "info_nce_backward";
  const Inputs inputs{.query = query,
                      .positive_key = positive_key,
                      .negative_keys = negative_keys,
                      .mask = mask,
                      .labels = labels,
                      .learned_temperature = learned_temperature,
                      .temperature = temperature};
  inputs.check_all(op);
  check_reduction(op, reduction);
  check_shape(op, "grad_loss", grad_loss, loss_shape(query, reduction));
  check_like(op, "grad_loss", query, grad_loss);
  check_statistic(op, "statistics", query, statistics, {3});
  Gradients grads(inputs);
  dispatch(op, query.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    using T = Accumulator<S>;
    const int64_t count = query.size(0) * query.size(1);
    grads.compute(
        Contrast<S>(inputs), LossGradient<S>(&grad_loss, reduction, count),
        {const_data<T>(statistics), count},
        [](const Round<S>& round, const InfoNceBackward<S>& backward) { backward(round); });
  });
  return std::move(grads.all);
}

}  // namespace clsd::cpu
