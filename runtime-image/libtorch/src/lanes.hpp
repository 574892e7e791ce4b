// FIFO worker lanes: threads that run the model while the event loop goes on serving sockets, and the batches they make.
//
// The queue is first come, first served, and bounded in requests and in bytes. A lane that comes free takes what is at the head of the
// queue at once; with batching it takes the rows behind it along that fit, and waits for more only while more are to be expected: at most
// `max_delay` after the first came, and never beyond as many rows as were in flight at once lately. One client alone never waits.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <variant>
#include <vector>

#include "metrics.hpp"
#include "tensors.hpp"

namespace slipway {

using Clock = std::chrono::steady_clock;
using Result = std::variant<std::vector<Tensor>, HttpError>;
using Infer = std::function<std::vector<Tensor>(const std::vector<Tensor>&)>;

struct LaneOptions {
  int lanes = 1;
  size_t queue_size = 256;          // requests that may wait
  size_t queue_bytes = 256 << 20;   // bytes of tensors that may wait
  int64_t max_batch = 1;            // rows of a call; 1: no batching
  std::chrono::microseconds max_delay{0};
};

struct Job {
  std::vector<Tensor> inputs;
  std::function<void(Result)> done;       // in the lane's thread; must not throw
  std::function<void()> skipped;          // instead of done, when nobody waits any more
  std::function<bool()> wanted;           // from any thread
  std::function<std::vector<Tensor>()> prepare;  // makes the inputs in the lane (image files); may throw HttpError
  bool batched = false;
  bool is_probe = false;                  // its answer is counted apart from users' answers
  size_t bytes = 0;
  Clock::time_point queued_at{};
};

// Runs `infer`; an HttpError passes, anything else becomes a 500 that says what failed.
Result guarded(const Infer& infer, const std::vector<Tensor>& inputs);

class Lanes {
 public:
  Lanes(LaneOptions options, Metrics& metrics) : options_(options), metrics_(metrics), started_(static_cast<size_t>(options.lanes)) {}
  ~Lanes() { close(std::chrono::seconds(1)); }

  // Starts the threads; `enter` is called in each first. Once, before the first submit.
  void start(Infer infer, std::function<void()> enter);
  // Throws HttpError 429 with Retry-After when the queue is full.
  void submit(Job job);
  // Seconds that the longest running call has taken so far; 0 when none runs.
  double stuck_seconds() const;
  // Ends the lanes after the queued jobs; false when one is still inside a call after `timeout`.
  bool close(std::chrono::milliseconds timeout);
  // A call on the caller's own thread, measured like those of the lanes.
  Result run_here(const std::vector<Tensor>& inputs);
  // Counts one request's answer when its outputs are not finite; returns it.
  Result noted(Result answer, bool is_probe);

 private:
  void run(size_t lane);
  std::vector<Job> take(std::unique_lock<std::mutex>& lock);
  void gather(std::unique_lock<std::mutex>& lock, std::vector<Job>& batch);
  void process(std::vector<Job>& batch);
  void leave(const std::vector<Job>& batch);
  std::vector<Tensor> measured(const std::vector<Tensor>& inputs);
  int64_t expected_rows(Clock::time_point now);
  void note_rows(Clock::time_point now);

  const LaneOptions options_;
  Metrics& metrics_;
  Infer infer_;
  std::vector<std::atomic<int64_t>> started_;  // nanoseconds of Clock, 0: idle
  std::atomic<double> mean_seconds_{0};
  mutable std::mutex mutex_;
  std::condition_variable changed_, ended_;
  std::deque<Job> queue_;
  size_t queued_bytes_ = 0;
  int64_t rows_ = 0, peak_ = 0, last_peak_ = 0;  // rows in queue and calls; the most at once in this window and the one before
  Clock::time_point window_{};
  int running_ = 0;
  bool closing_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace slipway
