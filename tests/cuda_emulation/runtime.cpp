#include "runtime.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace clsd::emulation {

Position position;
unsigned char* shared = nullptr;
size_t shared_bytes = 0;
bool sm90a = false;
int multiprocessors = 16;
size_t block_shared_bytes = kMaxSharedBytes;
Counts counts;

namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr size_t kPieceBytes = 16;        // granularity of the marks of unfenced writes
constexpr unsigned kPreemptionOdds = 16;  // a warp is preempted at one in so many of its meetings
constexpr int kMaxThreads = 1024;
constexpr const char* kBarrier = "a barrier";
constexpr size_t kSharedAlignment = 1024;

struct Copy {
  uint32_t offset;
  const void* source;
};

// A fiber. It is made once, and runs a thread of one block after another: making one takes longer
// than most threads run.
struct Thread {
  enum class State { kReady, kWaiting, kDone };

  int number = 0;
  dim3 index;
  State state = State::kReady;
  bool resumable = false;  // `context` is that of the thread that it runs, or of the last one's end
  const char* waits_for = "";
  int barrier = 0, barrier_threads = 0;  // that it waits for, if it is one
  // That it has come to.
  int barriers = 0, waits = 0, proxy_fences = 0, product_waits = 0;
  std::vector<Copy> open_group;          // copies not yet committed
  std::deque<std::vector<Copy>> groups;  // committed copies that have not happened
  std::vector<uint32_t> unfenced;        // pieces that it wrote since its last proxy fence
  jmp_buf context;
  ucontext_t start;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStackBytes);
};

// Threads that meet for an operation, and what they brought.
struct Meeting {
  const char* operation = nullptr;
  int arrived = 0;
  std::array<void*, kWarpgroupThreads> arguments{};
};

struct Barrier {
  int arrived = 0, threads = 0;
  std::vector<Thread*> waiting;
};

std::mutex launching;
std::vector<std::unique_ptr<Thread>> pool;
const std::function<void()>* body;
std::string kernel;
int threads;
Thread* current;
jmp_buf scheduler;
std::string failure;
std::array<int, kMaxThreads / kWarpLanes> ready_lanes;  // of each warp
int unfinished;
std::array<Meeting, kMaxThreads / kWarpLanes> warp_meetings;
std::array<Meeting, kMaxThreads / kWarpgroupThreads> warpgroup_meetings;
std::array<Barrier, 16> barriers;
std::vector<int> unfenced_writer;  // of each piece of shared memory: thread number, or -1
uint64_t seed = 0, random_state = 0;
int skipped_barrier = -1, skipped_wait = -1, skipped_proxy_fence = -1, skipped_product_wait = -1;

// splitmix64
unsigned draw(unsigned bound) {
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return static_cast<unsigned>((z ^ (z >> 31)) >> 33) % bound;
}

std::string text(dim3 d) {
  return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
}

// Back to the scheduler, until it resumes this fiber.
__attribute__((noinline)) void leave() {
  if (_setjmp(current->context) == 0) _longjmp(scheduler, 1);
}

void set_state(Thread& thread, Thread::State state) {
  constexpr auto kReady = Thread::State::kReady;
  ready_lanes[thread.number / kWarpLanes] += (state == kReady) - (thread.state == kReady);
  unfinished -= state == Thread::State::kDone;
  thread.state = state;
}

void fiber_main() {
  for (;;) {
    (*body)();
    if (!current->groups.empty() || !current->open_group.empty()) {
      fail("ends without waiting for its asynchronous copies");
    }
    if (has_products()) fail("ends without waiting for its warpgroup's products");
    set_state(*current, Thread::State::kDone);
    leave();  // until there is a thread of another block
  }
}

__attribute__((noinline)) void resume(Thread& thread) {
  current = &thread;
  if (_setjmp(scheduler) != 0) return;
  if (thread.resumable) _longjmp(thread.context, 1);
  thread.resumable = true;
  getcontext(&thread.start);
  thread.start.uc_stack.ss_sp = thread.stack.get();
  thread.start.uc_stack.ss_size = kStackBytes;
  thread.start.uc_link = nullptr;
  makecontext(&thread.start, fiber_main, 0);
  setcontext(&thread.start);
}

void wait_for(const char* what) {
  set_state(*current, Thread::State::kWaiting);
  current->waits_for = what;
  leave();
}

dim3 index_of(unsigned number, dim3 size) {
  return {number % size.x, number / size.x % size.y, number / (size.x * size.y)};
}

bool is_ready(int number) {
  return number < threads && pool[number]->state == Thread::State::kReady;
}

// Run each lane of a warp until it waits.
void run_lanes(int warp) {
  const int first = static_cast<int>(draw(kWarpLanes)), direction = draw(2) ? 1 : kWarpLanes - 1;
  for (int i = 0; i < kWarpLanes; ++i) {
    const int number = warp * kWarpLanes + (first + i * direction) % kWarpLanes;
    if (!is_ready(number)) continue;
    position.thread = pool[number]->index;
    resume(*pool[number]);
    if (!failure.empty()) throw std::runtime_error(failure);
  }
}

std::string describe_barrier(int id, int count) {
  return "barrier " + std::to_string(id) + " of " + std::to_string(count) + " threads";
}

std::string describe(const Thread& thread) {
  if (thread.state == Thread::State::kDone) return "has ended";
  if (thread.waits_for != kBarrier) return std::string("waits at ") + thread.waits_for;
  return "waits at " + describe_barrier(thread.barrier, thread.barrier_threads);
}

[[noreturn]] void report_deadlock() {
  std::string message = kernel + ", block " + text(position.block) + ": no thread can go on:";
  std::string last;
  for (int number = 0; number < threads; ++number) {
    const std::string state = describe(*pool[number]);
    if (state != last) message += " from thread " + std::to_string(number) + " " + state + ";";
    last = state;
  }
  message.back() = '.';
  throw std::runtime_error(message);
}

void run_block() {
  const int warps = (threads + kWarpLanes - 1) / kWarpLanes;
  const int lagging = static_cast<int>(draw(2 * static_cast<unsigned>(warps)));  // if there is one
  std::vector<int> ready;
  for (;;) {
    ready.clear();
    for (int warp = 0; warp < warps; ++warp) {
      if (warp != lagging && ready_lanes[warp]) ready.push_back(warp);
    }
    if (ready.empty() && lagging < warps && ready_lanes[lagging]) ready.push_back(lagging);
    if (unfinished == 0) return;
    if (ready.empty()) report_deadlock();
    const int warp = ready[draw(static_cast<unsigned>(ready.size()))];
    do {
      run_lanes(warp);
    } while (ready_lanes[warp] && draw(kPreemptionOdds) != 0);
  }
}

void reset_block() {
  constexpr int kNan = 0xFF;
  std::memset(shared, kNan, shared_bytes);
  unfenced_writer.assign(shared_bytes / kPieceBytes + 1, -1);
  warp_meetings.fill({});
  warpgroup_meetings.fill({});
  barriers.fill({});
  discard_products();
  ready_lanes.fill(0);
  unfinished = threads;
  for (int number = 0; number < threads; ++number) {
    Thread& thread = *pool[number];
    thread.number = number;
    thread.index = index_of(static_cast<unsigned>(number), position.block_size);
    // A launch that failed has left its fibers in the middle of their threads.
    thread.resumable = thread.resumable && thread.state == Thread::State::kDone;
    thread.state = Thread::State::kReady;
    ++ready_lanes[number / kWarpLanes];
    thread.barriers = thread.waits = thread.proxy_fences = thread.product_waits = 0;
    thread.open_group.clear();
    thread.groups.clear();
    thread.unfenced.clear();
  }
}

void perform(const Copy& copy) {
  if (copy.source) {
    std::memcpy(shared + copy.offset, copy.source, kPieceBytes);
  } else {
    std::memset(shared + copy.offset, 0, kPieceBytes);
  }
  mark_written(copy.offset, kPieceBytes);
}

// All blocks of a grid, in an order drawn from the seed.
void run_blocks(dim3 grid, dim3 block, size_t bytes) {
  failure.clear();
  random_state = seed;
  while (pool.size() < static_cast<size_t>(threads)) pool.push_back(std::make_unique<Thread>());
  alignas(kSharedAlignment) static unsigned char memory[kMaxSharedBytes];
  shared = memory;
  shared_bytes = bytes;
  position.grid_size = grid, position.block_size = block;
  const auto blocks = grid.x * grid.y * grid.z;
  const unsigned start = draw(blocks), step = draw(2) ? 1 : blocks - 1;
  for (unsigned i = 0, number = start; i < blocks; ++i, number = (number + step) % blocks) {
    position.block = index_of(number, grid);
    reset_block();
    run_block();
  }
}

}  // namespace

void fail(const std::string& message) {
  failure = kernel + ", block " + text(position.block) + ", thread " + text(position.thread) +
            ": " + message;
  _longjmp(scheduler, 1);
}

bool toss() { return draw(2) == 0; }

bool skips_product_wait() { return current->product_waits++ == skipped_product_wait; }

int thread_number() { return current->number; }

void run(const char* name, dim3 grid, dim3 block, size_t bytes, const Parameters& parameters,
         const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(launching);
  const uint64_t size = uint64_t{1} * block.x * block.y * block.z;
  const uint64_t grid_size = uint64_t{1} * grid.x * grid.y * grid.z;
  const bool fits = size >= 1 && size <= kMaxThreads && bytes <= kMaxSharedBytes &&
                    grid.y <= 65535 && grid.z <= 65535 && grid_size >= 1 && grid_size <= 0x7FFFFFFF;
  if (!fits) {
    throw std::runtime_error(std::string(name) + ": cannot launch grid " + text(grid) + ", block " +
                             text(block) + ", " + std::to_string(bytes) +
                             " bytes of shared memory");
  }
  kernel = name, body = &thread, threads = static_cast<int>(size);
  counts = {};
  if (launches_run()) run_blocks(grid, block, bytes);
  record({kernel, grid, block, bytes, parameters, counts});
}

void barrier(int id, int count, bool waits) {
  if (current->barriers++ == skipped_barrier) return;
  if (id < 0 || id > 15 || count < 1 || count % kWarpLanes != 0) {
    fail("no " + describe_barrier(id, count));
  }
  Barrier& at = barriers[id];
  if (at.arrived > 0 && at.threads != count) {
    fail("barrier " + std::to_string(id) + " is one of " + std::to_string(at.threads) +
         " threads for others, of " + std::to_string(count) + " here");
  }
  at.threads = count;
  if (++at.arrived < count) {
    if (!waits) return;
    at.waiting.push_back(current);
    current->barrier = id, current->barrier_threads = count;
    wait_for(kBarrier);
    return;
  }
  at.arrived = 0;
  for (Thread* thread : at.waiting) set_state(*thread, Thread::State::kReady);
  at.waiting.clear();
}

void collective(const char* operation, int count, void* arguments, Execute execute) {
  const int first = current->number / count * count;
  if (first + count > threads) fail(std::string(operation) + " by less than whole warps");
  Meeting& meeting =
      count == kWarpLanes ? warp_meetings[first / count] : warpgroup_meetings[first / count];
  if (meeting.arrived > 0 && meeting.operation != operation &&
      std::strcmp(meeting.operation, operation) != 0) {
    fail(std::string("diverged: comes to ") + operation + " while others of its group wait at " +
         meeting.operation);
  }
  meeting.operation = operation;
  meeting.arguments[current->number - first] = arguments;
  if (++meeting.arrived < count) {
    wait_for(operation);
    return;
  }
  meeting.arrived = 0;
  execute(meeting.arguments.data());
  for (int number = first; number < first + count; ++number) {
    set_state(*pool[number], Thread::State::kReady);
  }
}

void copy_async(uint32_t offset, const void* source) {
  current->open_group.push_back({offset, source});
  shared_at(offset, kPieceBytes, "cp.async");
}

void commit_copies() {
  // Copies that happen early find others still reading what they overwrite; late ones are missed by
  // a read that does not wait.
  auto& group = current->open_group;
  const auto late =
      std::stable_partition(group.begin(), group.end(), [](const Copy&) { return toss(); });
  std::for_each(group.begin(), late, perform);
  current->groups.emplace_back(late, group.end());
  group.clear();
}

void wait_copies(int pending) {
  if (current->waits++ == skipped_wait) return;
  while (static_cast<int>(current->groups.size()) > pending) {
    for (const Copy& copy : current->groups.front()) perform(copy);
    current->groups.pop_front();
  }
}

unsigned char* shared_at(uint32_t offset, size_t bytes, const char* operation) {
  if (offset + bytes > shared_bytes) {
    fail(std::string(operation) + " at byte " + std::to_string(offset) + " of " +
         std::to_string(shared_bytes) + " of shared memory");
  }
  if (offset % bytes != 0) {
    fail(std::string(operation) + " at byte " + std::to_string(offset) +
         " of shared memory, which is not aligned to " + std::to_string(bytes));
  }
  return shared + offset;
}

void mark_written(uint32_t offset, size_t bytes) {
  for (size_t piece = offset / kPieceBytes; piece * kPieceBytes < offset + bytes; ++piece) {
    if (unfenced_writer[piece] == current->number) continue;
    unfenced_writer[piece] = current->number;
    current->unfenced.push_back(static_cast<uint32_t>(piece));
  }
}

void fence_written() {
  if (current->proxy_fences++ == skipped_proxy_fence) return;
  for (uint32_t piece : current->unfenced) {
    if (unfenced_writer[piece] == current->number) unfenced_writer[piece] = -1;
  }
  current->unfenced.clear();
}

void check_fenced(uint32_t offset, size_t bytes) {
  for (size_t piece = offset / kPieceBytes; piece * kPieceBytes < offset + bytes; ++piece) {
    if (unfenced_writer[piece] < 0) continue;
    fail("wgmma reads byte " + std::to_string(offset) + " of shared memory, which thread " +
         std::to_string(unfenced_writer[piece]) + " wrote without fence_proxy_async");
  }
}

void check_global(const void* address, size_t bytes, Range tensor, const char* operation) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto first = reinterpret_cast<uintptr_t>(tensor.begin);
  const auto last = reinterpret_cast<uintptr_t>(tensor.end);
  if (at < first || at + bytes > last) {
    fail(std::string(operation) + " of " + std::to_string(bytes) + " bytes at byte " +
         std::to_string(static_cast<int64_t>(at - first)) + " of a tensor of " +
         std::to_string(last - first));
  }
  if (at % bytes != 0) {
    fail(std::string(operation) + " at an address not aligned to " + std::to_string(bytes));
  }
}

}  // namespace clsd::emulation

void clsd_emulation_seed(uint64_t seed) { clsd::emulation::seed = seed; }
void clsd_emulation_sm90a(int runs) { clsd::emulation::sm90a = runs; }

void clsd_emulation_multiprocessors(int number) { clsd::emulation::multiprocessors = number; }
void clsd_emulation_block_shared_bytes(int bytes) {
  clsd::emulation::block_shared_bytes = static_cast<size_t>(bytes);
}
const char* clsd_emulation_kernel() { return clsd::emulation::kernel.c_str(); }
void clsd_emulation_skip_barrier(int index) { clsd::emulation::skipped_barrier = index; }
void clsd_emulation_skip_wait(int index) { clsd::emulation::skipped_wait = index; }
void clsd_emulation_skip_proxy_fence(int index) { clsd::emulation::skipped_proxy_fence = index; }
void clsd_emulation_skip_product_wait(int index) { clsd::emulation::skipped_product_wait = index; }
