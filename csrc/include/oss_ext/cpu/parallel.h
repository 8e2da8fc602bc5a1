// Threads for the CPU kernels: tasks are handed out one at a time, so that what a task computes cannot depend on how
// many threads there are. std::thread and not OpenMP, because torch brings an OpenMP runtime of its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>

namespace oss_ext::cpu {

// Below this many inner operations a thread costs more to start than it saves.
constexpr double kOperationsPerThread = 5e5;

// How many workers a call should use: never more than the tasks, and few for little work.
inline int worker_count(int64_t tasks, int threads, double operations) {
  const double useful = std::min(operations / kOperationsPerThread, 4096.0);
  const int64_t most = std::min<int64_t>(std::max<int64_t>(tasks, 1), std::max(threads, 1));
  return static_cast<int>(std::clamp<int64_t>(static_cast<int64_t>(useful), 1, most));
}

// Calls fn(task, worker) once for every task in [0, tasks), worker in [0, workers). fn must not throw.
// A thread that the system refuses is done without: the others take its tasks.
template <class Fn>
void parallel_for(int64_t tasks, int workers, const Fn& fn) {
  if (workers <= 1 || tasks <= 1) {
    for (int64_t task = 0; task < tasks; ++task) fn(task, 0);
    return;
  }
  std::atomic<int64_t> next{0};
  auto run = [&](int worker) {
    for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) fn(task, worker);
  };
  const int extra = static_cast<int>(std::min<int64_t>(workers, tasks)) - 1;
  auto pool = std::make_unique<std::thread[]>(extra);
  int started = 0;
  try {
    for (; started < extra; ++started) pool[started] = std::thread(run, started + 1);
  } catch (const std::system_error&) {
  } catch (const std::bad_alloc&) {
  }
  run(0);
  for (int i = 0; i < started; ++i) pool[i].join();
}

// Cache-line aligned scratch; throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : data_(static_cast<char*>(::operator new(std::max<size_t>(bytes, 64), std::align_val_t{64}))) {}
  ~Scratch() { ::operator delete(data_, std::align_val_t{64}); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
};

}  // namespace oss_ext::cpu
