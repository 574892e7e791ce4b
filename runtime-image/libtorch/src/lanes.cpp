#include "lanes.hpp"

#include <algorithm>
#include <cmath>

#include "failure.hpp"

namespace slipway {

namespace {

constexpr auto kWindow = std::chrono::milliseconds(100);

int64_t rows_in(const std::vector<Tensor>& inputs) { return inputs.empty() || inputs[0].shape.empty() ? 1 : inputs[0].shape[0]; }

// Whether two requests may share a call: all dims but the first agree.
bool fits(const Job& a, const Job& b) {
  if (!a.batched || !b.batched) return false;
  for (size_t i = 0; i < a.inputs.size(); ++i)
    if (!std::equal(a.inputs[i].shape.begin() + 1, a.inputs[i].shape.end(), b.inputs[i].shape.begin() + 1, b.inputs[i].shape.end())) return false;
  return true;
}

}  // namespace

Result guarded(const Infer& infer, const std::vector<Tensor>& inputs) {
  try {
    return infer(inputs);
  } catch (const HttpError& error) {
    return error;
  } catch (const std::exception& error) {
    log_line("ERROR", std::string("the model failed: ") + error.what());
    return HttpError(500, ("the model failed: " + std::string(error.what())).substr(0, 500));
  } catch (...) {
    return HttpError(500, "the model failed with an unknown exception");
  }
}

void Lanes::start(Infer infer, std::function<void()> enter) {
  infer_ = std::move(infer);
  running_ = options_.lanes;
  for (size_t lane = 0; lane < started_.size(); ++lane)
    threads_.emplace_back([this, lane, enter] {
      enter();
      run(lane);
    });
}

void Lanes::submit(Job job) {
  for (const Tensor& input : job.inputs) job.bytes += input.bytes;
  job.queued_at = Clock::now();
  {
    const std::lock_guard lock(mutex_);
    if (queue_.size() >= options_.queue_size || (!queue_.empty() && queued_bytes_ + job.bytes > options_.queue_bytes)) {
      const double seconds = mean_seconds_.load(std::memory_order_relaxed) * static_cast<double>(queue_.size()) / options_.lanes;
      throw HttpError(429, "the queue of this pod is full; retry later", static_cast<int>(std::clamp(std::ceil(seconds), 1.0, 60.0)));
    }
    rows_ += rows_in(job.inputs);
    note_rows(job.queued_at);
    queued_bytes_ += job.bytes;
    queue_.push_back(std::move(job));
  }
  changed_.notify_one();
}

double Lanes::stuck_seconds() const {
  const int64_t now = Clock::now().time_since_epoch().count();
  int64_t longest = 0;
  for (const auto& started : started_)
    if (const int64_t from = started.load(std::memory_order_relaxed)) longest = std::max(longest, now - from);
  return std::chrono::duration<double>(Clock::duration(longest)).count();
}

bool Lanes::close(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  closing_ = true;
  changed_.notify_all();
  const bool ended = ended_.wait_for(lock, timeout, [this] { return running_ == 0; });
  lock.unlock();
  for (std::thread& thread : threads_)
    if (thread.joinable()) ended ? thread.join() : thread.detach();
  return ended;
}

Result Lanes::run_here(const std::vector<Tensor>& inputs) {
  return guarded([this](const std::vector<Tensor>& x) { return measured(x); }, inputs);
}

void Lanes::run(size_t lane) {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closing_ || !queue_.empty(); });
    if (queue_.empty()) break;
    std::vector<Job> batch = take(lock);
    lock.unlock();
    const auto from = Clock::now();
    started_[lane].store(from.time_since_epoch().count(), std::memory_order_relaxed);
    process(batch);
    started_[lane].store(0, std::memory_order_relaxed);
    const double seconds = std::chrono::duration<double>(Clock::now() - from).count() / static_cast<double>(batch.size());
    const double mean = mean_seconds_.load(std::memory_order_relaxed);
    mean_seconds_.store(mean + 0.1 * (seconds - mean), std::memory_order_relaxed);
    batch.clear();
    lock.lock();
  }
  --running_;
  ended_.notify_all();
}

// The job at the head, and with batching those that fit behind it. Called with the lock.
std::vector<Job> Lanes::take(std::unique_lock<std::mutex>& lock) {
  std::vector<Job> batch;
  batch.push_back(std::move(queue_.front()));
  queue_.pop_front();
  queued_bytes_ -= batch[0].bytes;
  if (batch[0].batched && options_.max_batch > 1) gather(lock, batch);
  return batch;
}

void Lanes::gather(std::unique_lock<std::mutex>& lock, std::vector<Job>& batch) {
  const auto deadline = batch[0].queued_at + options_.max_delay;
  int64_t rows = rows_in(batch[0].inputs);
  while (true) {
    while (!queue_.empty() && fits(batch[0], queue_.front()) && rows + rows_in(queue_.front().inputs) <= options_.max_batch) {
      rows += rows_in(queue_.front().inputs);
      queued_bytes_ -= queue_.front().bytes;
      batch.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
    const auto now = Clock::now();
    // Something that does not fit at the head of the queue must not wait for this batch to fill.
    if (!queue_.empty() || closing_ || now >= deadline || rows >= std::min(options_.max_batch, expected_rows(now))) return;
    changed_.wait_until(lock, deadline);
  }
}

void Lanes::process(std::vector<Job>& batch) {
  const auto now = Clock::now();
  std::vector<Job*> wanted;
  for (Job& job : batch) {
    metrics_.queue.observe(std::chrono::duration<double>(now - job.queued_at).count());
    if (job.wanted()) wanted.push_back(&job);
    else job.skipped();
  }
  if (wanted.empty()) return leave(batch);
  if (wanted.size() == 1) {
    Job& job = *wanted[0];
    Result alone = guarded([&](const std::vector<Tensor>& inputs) { return measured(job.prepare ? job.prepare() : inputs); }, job.inputs);
    leave(batch);
    return job.done(noted(std::move(alone), job.is_probe));
  }
  std::vector<Tensor> together;
  for (size_t i = 0; i < wanted[0]->inputs.size(); ++i) {
    std::vector<const Tensor*> parts;
    for (const Job* job : wanted) parts.push_back(&job->inputs[i]);
    together.push_back(concatenate(parts));
  }
  Result result = run_here(together);
  leave(batch);
  if (const auto* error = std::get_if<HttpError>(&result)) {
    // One request's values may be what the model cannot bear; the others must not pay for it.
    if (error->status == 500)
      for (Job* job : wanted) job->done(noted(run_here(job->inputs), job->is_probe));
    else
      for (Job* job : wanted) job->done(*error);
    return;
  }
  const auto& outputs = std::get<std::vector<Tensor>>(result);
  int64_t at = 0;
  for (Job* job : wanted) {
    const int64_t rows = rows_in(job->inputs);
    std::vector<Tensor> own;
    for (const Tensor& output : outputs) own.push_back(rows_of(output, at, rows));
    at += rows;
    job->done(noted(std::move(own), job->is_probe));
  }
}

Result Lanes::noted(Result answer, bool is_probe) {
  if (const auto* outputs = std::get_if<std::vector<Tensor>>(&answer))
    if (std::any_of(outputs->begin(), outputs->end(), has_nonfinite)) metrics_.answers(is_probe).add_nonfinite();
  return answer;
}

// Before the answers go out: a client that asks again at once must not find its old request still counted.
void Lanes::leave(const std::vector<Job>& batch) {
  const std::lock_guard lock(mutex_);
  for (const Job& job : batch) rows_ -= rows_in(job.inputs);
}

std::vector<Tensor> Lanes::measured(const std::vector<Tensor>& inputs) {
  const auto from = Clock::now();
  std::vector<Tensor> outputs = infer_(inputs);
  metrics_.inference.observe(std::chrono::duration<double>(Clock::now() - from).count());
  metrics_.batch.observe(static_cast<double>(rows_in(inputs)));
  return outputs;
}

int64_t Lanes::expected_rows(Clock::time_point now) {
  note_rows(now);
  return std::max(peak_, last_peak_);
}

void Lanes::note_rows(Clock::time_point now) {
  if (now - window_ > kWindow) {
    last_peak_ = now - window_ > 2 * kWindow ? 0 : peak_;
    peak_ = 0;
    window_ = now;
  }
  peak_ = std::max(peak_, rows_);
}

}  // namespace slipway
