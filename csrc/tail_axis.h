// The rows and columns of the composed tail: which taps it has, and which paths make them up. This
// is clsd_fast/_tail_axes.py once more; docs/tail.md derives it.
//
// Over one axis, a tail maps each pixel to `taps` output pixels. Its intermediate maps end at their
// borders, and paths through pixels beyond those do not exist: so the pixels at the edge have
// further, negative taps that take such paths off again.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace clsd {

// Consecutive taps of an axis: those of every pixel, or of one at an edge.
struct TailSegment {
  int64_t begin, count;
  bool every;
  int64_t edge = 0;  // which pixel, negative from the end

  bool exists(int64_t size) const { return every || (edge < 0 ? -edge : edge + 1) <= size; }
  // The first of the input pixels that have these taps, and how many there are.
  int64_t first(int64_t size) const { return every ? 0 : edge < 0 ? size + edge : edge; }
  int64_t pixels(int64_t size) const { return every ? size : 1; }
  bool has(int64_t pixel, int64_t size) const { return every || pixel == first(size); }
};

// Ways from an input pixel to the output that lie side by side: from row `row` of the 3 r rows of
// the next map that a pixel reaches, by each of `count` taps from there on, as a part of a tap.
struct TailPath {
  int64_t row, after, tap, count;
  int sign;
};

// The taps of pixel y reach output pixels upscale * y - padding and on; those of an edge, the
// output's first or last.
struct TailAxis {
  int64_t upscale, padding;
  std::vector<TailSegment> segments;  // first that of every pixel
  std::vector<TailPath> paths;

  int64_t size() const { return segments.back().begin + segments.back().count; }

  // Output pixel that the first tap of a segment reaches from a pixel of its.
  int64_t target(const TailSegment& segment, int64_t pixel, int64_t input_size) const {
    if (segment.every) return upscale * pixel - padding;
    return segment.edge < 0 ? upscale * input_size - segment.count : 0;
  }

  // The tap in whose place this one is if the axis is turned around.
  int64_t mirrored(int64_t tap) const {
    const auto of = std::find_if(segments.begin(), segments.end(), [&](const TailSegment& s) {
      return s.begin <= tap && tap < s.begin + s.count;
    });
    const auto other = std::find_if(segments.begin(), segments.end(), [&](const TailSegment& s) {
      return s.every == of->every && (s.every || s.edge == ~of->edge);
    });
    return other->begin + of->begin + of->count - 1 - tap;
  }
};

// What is taken off the pixel `edge` at the start of an axis, by output pixel.
inline std::vector<TailPath> start_paths(int64_t stage, const TailAxis& after, int64_t edge) {
  std::vector<TailPath> paths;
  for (int64_t row = 0; row < 3 * stage; ++row) {
    const int64_t position = stage * (edge - 1) + row;
    for (const TailSegment& segment : after.segments) {
      if (position < 0 && segment.every) {
        const int64_t first = after.upscale * position - after.padding;
        if (first + segment.count > 0) {
          paths.push_back(
              {.row = row, .after = -first, .tap = 0, .count = segment.count + first, .sign = -1});
        }
      } else if (position >= 0 && !segment.every && segment.edge == position) {
        paths.push_back(
            {.row = row, .after = segment.begin, .tap = 0, .count = segment.count, .sign = 1});
      }
    }
  }
  return paths;
}

// The last convolution: row y of its input adds to rows y - 1 to y + 1.
inline TailAxis out_conv_axis() {
  return {
      .upscale = 1,
      .padding = 1,
      .segments = {{.begin = 0, .count = 3, .every = true}},
      .paths = {},
  };
}

// The axis of a 3x3 convolution and a pixel shuffle by `stage`, with `after` behind it.
inline TailAxis prepend(int64_t stage, const TailAxis& after) {
  const int64_t rows = 3 * stage, taps = after.segments[0].count;
  TailAxis axis{
      .upscale = stage * after.upscale,
      .padding = stage * after.upscale + after.padding,
      .segments = {{.begin = 0, .count = after.upscale * (rows - 1) + taps, .every = true}},
      .paths = {},
  };
  for (int64_t row = 0; row < rows; ++row) {
    axis.paths.push_back(
        {.row = row, .after = 0, .tap = after.upscale * row, .count = taps, .sign = 1});
  }
  for (int64_t edge = 0;; ++edge) {
    const std::vector<TailPath> start = start_paths(stage, after, edge);
    if (start.empty()) return axis;
    int64_t count = 0;
    for (const TailPath& path : start) count = std::max(count, path.tap + path.count);
    const int64_t first = axis.size(), last = first + 2 * count - 1;
    axis.segments.push_back({.begin = first, .count = count, .every = false, .edge = edge});
    axis.segments.push_back(
        {.begin = first + count, .count = count, .every = false, .edge = ~edge});
    for (const TailPath& path : start) {
      const int64_t end = path.count - 1;
      axis.paths.push_back({.row = path.row,
                            .after = path.after,
                            .tap = first + path.tap,
                            .count = path.count,
                            .sign = path.sign});
      axis.paths.push_back({.row = rows - 1 - path.row,
                            .after = after.mirrored(path.after + end),
                            .tap = last - path.tap - end,
                            .count = path.count,
                            .sign = path.sign});
    }
  }
}

// The axis from each stage to the end, and that of the last convolution.
inline std::vector<TailAxis> tail_axes(const std::vector<int64_t>& stages) {
  std::vector<TailAxis> axes{out_conv_axis()};
  for (auto stage = stages.rbegin(); stage != stages.rend(); ++stage) {
    axes.insert(axes.begin(), prepend(*stage, axes.front()));
  }
  return axes;
}

}  // namespace clsd
