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

// Answered requests: of users, of probes, or of one experiment.
class Answers {
 public:
  Answers();
  void add(int status, double seconds);
  void add_nonfinite() { nonfinite_.fetch_add(1, std::memory_order_relaxed); }
  // Append the sample lines.
  void requests(std::string& out, const std::string& name, const std::string& labels) const;
  void nonfinite(std::string& out, const std::string& name, const std::string& labels) const;
  void seconds(std::string& out, const std::string& name, const std::string& labels) const { seconds_.render(out, name, labels); }

 private:
  std::array<std::atomic<uint64_t>, 600> codes_{};
  std::atomic<uint64_t> nonfinite_{0};  // answers, not elements
  Histogram seconds_;
};

class Metrics {
 public:
  Metrics(std::string model, std::string revision);
  Answers& answers(bool is_probe) { return is_probe ? probes : users; }
  // Counts an answer to a request of an experiment besides; of more names than a route can have, the later ones are not counted.
  void add_to_experiment(const std::string& name, int status, double seconds);
  void set_artifact(const std::string& digest, const std::string& format, const std::string& precision, double load_seconds);
  std::string render() const;

  Answers users, probes;
  Histogram queue, inference, batch;
  std::atomic<int64_t> inflight{0};

 private:
  std::string model_, revision_;
  mutable std::mutex mutex_;  // of what is set once, and of the names of experiments
  std::map<std::string, Answers> experiments_;
  std::string artifact_labels_;
  double load_seconds_ = 0;
};

}  // namespace slipway
