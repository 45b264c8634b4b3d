// Launches of the composed tail's kernels.
#include "tail.h"

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "../shapes.h"
#include "launch.cuh"
#include "tail_apply.cuh"
#include "tail_gradients.cuh"

namespace clsd::cuda {

namespace {

dim3 grid_of(int64_t blocks, int tails) {
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(tails)};
}

// Tiles and pixels are numbered in an int.
void check_size(const TailShape& shape, int64_t blocks) {
  if (blocks >= kMaxRow || int64_t{shape.width} * shape.channels >= kMaxRow ||
      int64_t{shape.width} * shape.columns() >= kMaxRow) {
    throw std::runtime_error("upsample_tail: expected fewer than 2^31 tiles and numbers of a row");
  }
}

int64_t tiles_across(int64_t size, int tile) { return ceil_div(size, tile); }

// Each tile has `groups` blocks.
tail::TileGrid tile_grid(const TailShape& shape, int groups) {
  const int64_t tiles_x = tiles_across(shape.width, tail::kTileW);
  const int64_t tiles_y = tiles_across(shape.height, tail::kTileH);
  const int64_t blocks = shape.batch * tiles_y * tiles_x * groups;
  check_size(shape, blocks);
  return {Divisor(static_cast<int>(tiles_x)), Divisor(static_cast<int>(tiles_y)), Divisor(groups),
          blocks};
}

template <auto kKernel, class T>
void launch_tiles(const Tails<T>& tails, const TailShape& shape, int groups, uint32_t shared_bytes,
                  Stream stream) {
  const tail::TileGrid grid = tile_grid(shape, groups);
  if (grid.blocks == 0) return;
  // All at once, and each block's tiles in the same group.
  const int64_t room = multiprocessors() * tail::kBlocksHeld / (tails.count * groups);
  const int64_t blocks = std::min(grid.blocks, std::max<int64_t>(1, room) * groups);
  launch<kKernel>(grid_of(blocks, tails.count), tail::kThreads, shared_bytes, stream, tails, shape,
                  grid);
}

// Of the products of all stages, as many as the largest has.
template <class T>
int64_t products_blocks(const Tails<T>& tails) {
  int64_t blocks = 0;
  for (int i = 0; i < tails.count; ++i) {
    blocks = std::max<int64_t>(blocks, tail::products_blocks(tails.at[i].stage));
  }
  return blocks;
}

int64_t laid_out_pairs(const TailShape& shape) {
  return int64_t{shape.fragments()} * kFragmentPairs;
}

// The tasks of the composed weight's gradient. A multiprocessor has room for one block: they are one
// for each, unless most would be those of the edges, which follow then and are short.
tail::WeightsPlan weights_plan(const TailShape& shape, int tails) {
  tail::WeightsPlan plan{};
  const int64_t tiles_x = tiles_across(shape.width, tail::kTileW);
  const int64_t tiles_y = tiles_across(shape.height, tail::kTileH);
  plan.tiles_x = Divisor(static_cast<int>(tiles_x));
  plan.tiles_y = Divisor(static_cast<int>(tiles_y));
  plan.groups = static_cast<int>(ceil_div(shape.channels, kGroup));
  const int64_t images = tiles_across(shape.batch, tail::kTileH);
  int edges = 0;
  for (int y = 0; y < tail::kAxisTasks; ++y) {
    for (int x = 0; x < tail::kAxisTasks; ++x) {
      tail::WeightsTask& task = plan.tasks[y * tail::kAxisTasks + x];
      const auto reach = [](int number) {
        return static_cast<int8_t>(number == 0 ? -1 : kEveryReaches + number - 1);
      };
      task.reach_y = reach(y), task.reach_x = reach(x);
      const bool is_inner = (y != 0 && y % 2 == 0) || (x != 0 && x % 2 == 0);
      if (is_inner && !shape.inner) continue;
      if (y == 0 && x == 0) {
        task.tiles = shape.batch * tiles_y * tiles_x;
      } else {
        const int64_t columns = y == 0 ? shape.height : x == 0 ? shape.width : 1;
        task.tiles = images * tiles_across(columns, tail::kTileW);
        ++edges;
      }
    }
  }
  const int parts = shape.chunks() * plan.groups * tails;
  const int64_t tiles = plan.tasks[0].tiles, room = multiprocessors() / parts;
  const int64_t splits = std::max<int64_t>(1, edges <= room / 2 ? room - edges : room);
  const int64_t of_split = std::max<int64_t>(1, ceil_div(tiles, splits));
  check_size(shape, tiles + of_split);
  for (tail::WeightsTask& task : plan.tasks) {
    task.tiles_of_split = static_cast<int>(of_split);
    task.splits = static_cast<int>(ceil_div(task.tiles, of_split));
    task.first_block = plan.blocks, plan.blocks += task.splits;
    const int64_t places = int64_t{task.splits} * shape.chunks() * kChunk;
    task.partials = plan.floats, plan.floats += places * task.windows() * shape.channels;
    task.ones = plan.floats, plan.floats += places;
  }
  return plan;
}

}  // namespace

template <class T>
void multiply_stages(const Tails<T>& tails, Stream stream) {
  launch<tail::products_kernel<T>>(grid_of(products_blocks(tails), tails.count),
                                   tail::kMatrixThreads, tail::kMatrixBytes, stream, tails);
}

template <class T>
void compose(const Tails<T>& tails, const TailPaths& paths, Stream stream) {
  int64_t numbers = 0;
  for (int i = 0; i < tails.count; ++i) {
    numbers = std::max<int64_t>(numbers, tails.at[i].composition.size());
  }
  launch<tail::compose_kernel<T>>(grid_of(ceil_div(numbers, tail::kComposingThreads), tails.count),
                                  tail::kComposingThreads, 0, stream, tails, paths);
}

template <class T>
void compose_and_lay_out(const Tails<T>& tails, const TailShape& shape, const TailPaths& paths,
                         Stream stream) {
  const int64_t ones = int64_t{shape.taps} * shape.taps * shape.outputs;
  const int64_t blocks = ceil_div(laid_out_pairs(shape) + ones, tail::kComposingThreads);
  launch<tail::lay_out_kernel<T>>(grid_of(blocks, tails.count), tail::kComposingThreads, 0, stream,
                                  tails, shape, paths);
}

template <class T>
void prepare_gradients(const Tails<T>& tails, const TailShape& shape, Stream stream) {
  const bool lays_out{tails.at[0].weights}, multiplies{tails.at[0].composition.products};
  const int64_t of_layout = lays_out ? ceil_div(laid_out_pairs(shape), tail::kMatrixThreads) : 0;
  const int64_t blocks = of_layout + (multiplies ? products_blocks(tails) : 0);
  if (blocks == 0) return;
  launch<tail::prepare_gradients_kernel<T>>(grid_of(blocks, tails.count), tail::kMatrixThreads,
                                            multiplies ? tail::kMatrixBytes : 0, stream, tails,
                                            shape, static_cast<int>(of_layout));
}

template <class T>
void apply(const Tails<T>& tails, const TailShape& shape, Stream stream) {
  const auto run = [&](auto number) {
    using Output = decltype(number);
    launch_tiles<tail::forward_kernel<T, Output>>(tails, shape, shape.chunks(), tail::kForwardBytes,
                                                  stream);
  };
  tails.at[0].shifted ? run(float{}) : run(T{});
}

template <class T>
void differentiate_images(const Tails<T>& tails, const TailShape& shape, Stream stream) {
  const int groups = static_cast<int>(ceil_div(shape.channels, kGroup));
  const auto run = [&](auto number) {
    using Output = decltype(number);
    launch_tiles<tail::images_gradient_kernel<T, Output>>(tails, shape, groups,
                                                          tail::kGradientBytes, stream);
  };
  tails.at[0].grad_shifted ? run(float{}) : run(T{});
}

template <class T>
void differentiate_weights(const WeightsGradients<T>& tails, const TailShape& shape,
                           const TailPaths& paths, Stream stream) {
  namespace wgrad = tail::wgrad;
  const tail::WeightsPlan plan = weights_plan(shape, tails.count);
  const int64_t blocks = plan.blocks * shape.chunks() * plan.groups;
  const auto run = [&](auto number) {
    using Output = decltype(number);
    launch<wgrad::weights_gradient_kernel<T, Output>>(grid_of(blocks, tails.count), wgrad::kThreads,
                                                      wgrad::kSharedBytes, stream, tails, shape,
                                                      plan);
  };
  if (blocks > 0) tails.at[0].grad_shifted ? run(float{}) : run(T{});
  const int64_t numbers = (int64_t{shape.channels} + 1) * shape.taps * shape.taps + 1;
  int64_t composed = 0;
  for (int i = 0; i < tails.count; ++i) {
    const Composition& after = tails.at[i].after;
    if (after.products) composed = std::max<int64_t>(composed, after.size());
  }
  const int64_t of_sums = ceil_div(numbers, wgrad::kReducingThreads);
  const int64_t all = of_sums + ceil_div(composed, wgrad::kReducingThreads);
  launch<wgrad::reduce_kernel<T>>(grid_of(all, tails.count), wgrad::kReducingThreads, 0, stream,
                                  tails, shape, plan, paths, static_cast<int>(of_sums));
}

void differentiate_stages(const StageGradients& tails, const TailPaths& paths, int taps,
                          Stream stream) {
  int64_t blocks = 0;
  for (int i = 0; i < tails.count; ++i) {
    const TailStage& stage = tails.at[i].stage;
    blocks =
        std::max<int64_t>(blocks, tail::weights_blocks(stage) + tail::after_blocks(tails.at[i]));
  }
  const auto run = [&](auto parts) {
    launch<tail::stage_gradient_kernel<parts>>(grid_of(blocks, tails.count), tail::kMatrixThreads,
                                               tail::kMatrixBytes, stream, tails, paths, taps);
  };
  tails.at[0].grad_parts > 1 ? run(std::true_type{}) : run(std::false_type{});
}

void sum_out_weights(const StageGradients& tails, Stream stream) {
  int64_t numbers = 0;
  for (int i = 0; i < tails.count; ++i) {
    const TailStage& stage = tails.at[i].stage;
    numbers = std::max(numbers, int64_t{stage.features} * stage.after_size());
  }
  launch<tail::sum_out_weights_kernel>(grid_of(ceil_div(numbers, 32), tails.count),
                                       tail::kComposingThreads,
                                       tail::kComposingThreads * sizeof(float), stream, tails);
}

int64_t partial_floats(const TailShape& shape, int count) {
  return weights_plan(shape, count).floats;
}

#define CLSD_TAILS(T)                                                                             \
  template void multiply_stages(const Tails<T>&, Stream);                                         \
  template void compose(const Tails<T>&, const TailPaths&, Stream);                               \
  template void compose_and_lay_out(const Tails<T>&, const TailShape&, const TailPaths&, Stream); \
  template void prepare_gradients(const Tails<T>&, const TailShape&, Stream);                     \
  template void apply(const Tails<T>&, const TailShape&, Stream);                                 \
  template void differentiate_images(const Tails<T>&, const TailShape&, Stream);                  \
  template void differentiate_weights(const WeightsGradients<T>&, const TailShape&,               \
                                      const TailPaths&, Stream);
CLSD_TAILS(Bf16)
CLSD_TAILS(Fp16)
#undef CLSD_TAILS

}  // namespace clsd::cuda
