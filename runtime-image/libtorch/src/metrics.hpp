// The server's metrics (names: docs/design 0001 and the Python server's), in Prometheus' text format. Safe from any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <vector>

namespace slipway {

class Histogram {
 public:
  explicit Histogram(std::span<const double> bounds) : bounds_(bounds), counts_(bounds.size() + 1) {}
  void observe(double value);
  // Appends the sample lines; `labels` is empty or `model="m",revision="r"`.
  void render(std::string& out, const std::string& name, const std::string& labels) const;

 private:
  std::span<const double> bounds_;
  std::vector<std::atomic<uint64_t>> counts_;
  std::atomic<double> sum_{0};
};

// Answered requests of users, or those of probes.
class Answers {
 public:
  Answers();
  void add(int status, double seconds);
  void add_nonfinite() { nonfinite_.fetch_add(1, std::memory_order_relaxed); }
  // Appends the metrics whose names begin with `prefix`; `whose` ends their help.
  void render(std::string& out, const std::string& prefix, const std::string& whose, const std::string& labels) const;

 private:
  std::array<std::atomic<uint64_t>, 600> codes_{};
  std::atomic<uint64_t> nonfinite_{0};  // answers, not elements
  Histogram seconds_;
};

class Metrics {
 public:
  Metrics(std::string model, std::string revision);
  Answers& answers(bool is_probe) { return is_probe ? probes : users; }
  void set_artifact(const std::string& digest, const std::string& format, const std::string& precision, double load_seconds);
  std::string render() const;

  Answers users, probes;
  Histogram queue, inference, batch;
  std::atomic<int64_t> inflight{0};

 private:
  std::string model_, revision_;
  mutable std::mutex mutex_;  // of what is set once
  std::string artifact_labels_;
  double load_seconds_ = 0;
};

}  // namespace slipway
