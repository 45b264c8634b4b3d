// What is known of launches beside their results: their arguments, and what they did.
#include <array>
#include <atomic>
#include <deque>

#include "runtime.h"

namespace clsd::emulation {

namespace {

// By their numbers; older ones are overwritten.
std::array<Range, kRanges> ranges;
std::atomic<uint64_t> made_ranges{0};

std::deque<Launch> launches;
bool recording = false, running = true;

}  // namespace

uint64_t number_of_range(const void* begin, const void* end) {
  const uint64_t number = made_ranges++ % kRanges;
  ranges[number] = {begin, end};
  return number;
}

Range range(uint64_t number) { return ranges[number]; }

void Parameters::add(const void* argument, size_t size, size_t alignment) {
  bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
  const auto first = static_cast<const unsigned char*>(argument);
  bytes.insert(bytes.end(), first, first + size);
}

bool launches_run() { return running; }

void record(const Launch& launch) {
  if (recording) launches.push_back(launch);
}

}  // namespace clsd::emulation

using namespace clsd::emulation;

void clsd_emulation_record(int runs) {
  launches.clear();
  recording = true;
  running = runs != 0;
}

void clsd_emulation_stop_recording() {
  recording = false;
  running = true;
}

int clsd_emulation_launches() { return static_cast<int>(launches.size()); }

ClsdLaunch clsd_emulation_launch(int index) {
  const Launch& launch = launches[static_cast<size_t>(index)];
  const Counts& counts = launch.counts;
  return {launch.kernel.c_str(),
          {launch.grid.x, launch.grid.y, launch.grid.z},
          {launch.block.x, launch.block.y, launch.block.z},
          launch.shared_bytes,
          counts.mma,
          counts.wgmma,
          counts.loads16,
          counts.stores16,
          launch.parameters.bytes.data(),
          launch.parameters.bytes.size()};
}
