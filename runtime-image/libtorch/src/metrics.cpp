#include "metrics.hpp"

#include <dirent.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <utility>

#include "json.hpp"

namespace slipway {

namespace {

// Seconds; steps of at most 2.5, so that a p99 read from the buckets can be held against a limit. Those of the Python server.
constexpr std::array<double, 21> kSeconds{0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075,
                                          0.1,    0.15,    0.25,   0.4,   0.6,    1.0,   2.5,  5.0,  10.0,  30.0};
constexpr size_t kMaxExperiments = 16;  // as many as spec.routing takes; a client that makes names up must not make series without end
constexpr const char* kProbes = ", probes (requests with the header x-slipway-probe)";
constexpr std::array<double, 9> kSizes{1, 2, 4, 8, 16, 32, 64, 128, 256};

// Never with an exponent: a bucket's bound is a label, so it must be written as the Python server writes it.
std::string number(double value) {
  char digits[400];
  std::string text(digits, std::to_chars(digits, digits + sizeof digits, value, std::chars_format::fixed).ptr);
  return text.find('.') == std::string::npos ? text + ".0" : text;
}

void head(std::string& out, const std::string& name, const std::string& help, const char* type) {
  out += "# HELP " + name + " " + help + "\n# TYPE " + name + " " + type + "\n";
}

void sample(std::string& out, const std::string& name, const std::string& labels, double value) {
  out += name + (labels.empty() ? "" : "{" + labels + "}") + " " + number(value) + "\n";
}

// Quoting of a label value is JSON's for the characters that matter: backslash, quote, newline (\u000a is not; names have none).
std::string label(const std::string& name, const std::string& value) { return name + "=" + json::quoted(value); }

int open_files() {
  int count = -3;  // `.`, `..` and the folder itself
  if (DIR* folder = ::opendir("/proc/self/fd")) {
    while (::readdir(folder)) ++count;
    ::closedir(folder);
  }
  return std::max(count, 0);
}

void process(std::string& out) {
  std::ifstream stat("/proc/self/stat"), uptime("/proc/stat");
  std::string text((std::istreambuf_iterator<char>(stat)), {});
  std::istringstream fields(text.substr(std::min(text.rfind(')') + 2, text.size())));
  std::vector<double> values;
  std::string word;
  for (fields >> word; fields >> word;) values.push_back(std::strtod(word.c_str(), nullptr));
  if (values.size() < 21) return;
  const double tick = static_cast<double>(sysconf(_SC_CLK_TCK));
  double boot = 0;
  for (std::string line; std::getline(uptime, line);)
    if (line.starts_with("btime ")) boot = std::strtod(line.c_str() + 6, nullptr);
  const std::pair<const char*, std::pair<const char*, double>> rows[] = {
      {"process_virtual_memory_bytes", {"gauge", values[19]}},
      {"process_resident_memory_bytes", {"gauge", values[20] * static_cast<double>(sysconf(_SC_PAGESIZE))}},
      {"process_start_time_seconds", {"gauge", boot + values[18] / tick}},
      {"process_cpu_seconds_total", {"counter", (values[10] + values[11]) / tick}},
      {"process_open_fds", {"gauge", open_files()}}};
  for (const auto& [name, row] : rows) {
    head(out, name, "Of this process.", row.first);
    sample(out, name, "", row.second);
  }
}

using Labelled = std::vector<std::pair<std::string, const Answers*>>;

// How many were answered and how long it took; names begin with `prefix`, and `whose` ends their help. Nothing where there are none.
void answered(std::string& out, const std::string& prefix, const std::string& whose, const Labelled& rows) {
  if (rows.empty()) return;
  head(out, prefix + "_requests_total", "Answered infer and predict requests" + whose + ".", "counter");
  for (const auto& [labels, answers] : rows) answers->requests(out, prefix + "_requests_total", labels);
  head(out, prefix + "_request_duration_seconds", "Request read to answer written" + whose + ".", "histogram");
  for (const auto& [labels, answers] : rows) answers->seconds(out, prefix + "_request_duration_seconds", labels);
}

void nonfinite(std::string& out, const std::string& prefix, const std::string& whose, const std::string& labels, const Answers& answers) {
  head(out, prefix + "_nonfinite_outputs_total", "Answers whose outputs have NaN or infinite values" + whose + ".", "counter");
  answers.nonfinite(out, prefix + "_nonfinite_outputs_total", labels);
}

// A name that spec.routing.experiments takes.
bool is_experiment(std::string_view name) {
  const auto is_plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  return !name.empty() && name.size() <= 63 && is_plain(name[0]) && std::all_of(name.begin(), name.end(), [&](char c) { return c == '-' || is_plain(c); });
}

}  // namespace

void Histogram::observe(double value) {
  const auto bucket = std::lower_bound(bounds_.begin(), bounds_.end(), value) - bounds_.begin();
  counts_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  sum_.fetch_add(value, std::memory_order_relaxed);
}

void Histogram::render(std::string& out, const std::string& name, const std::string& labels) const {
  uint64_t total = 0;
  const std::string prefix = labels.empty() ? "" : labels + ",";  // le comes first in the Python server's text; the order has no meaning
  for (size_t i = 0; i < counts_.size(); ++i) {
    total += counts_[i].load(std::memory_order_relaxed);
    const std::string bound = i < bounds_.size() ? number(bounds_[i]) : "+Inf";
    sample(out, name + "_bucket", prefix + "le=\"" + bound + "\"", static_cast<double>(total));
  }
  sample(out, name + "_count", labels, static_cast<double>(total));
  sample(out, name + "_sum", labels, sum_.load(std::memory_order_relaxed));
}

Answers::Answers() : seconds_(kSeconds) {}

void Answers::add(int status, double seconds) {
  codes_[static_cast<size_t>(std::clamp(status, 0, 599))].fetch_add(1, std::memory_order_relaxed);
  seconds_.observe(seconds);
}

void Answers::requests(std::string& out, const std::string& name, const std::string& labels) const {
  for (size_t code = 0; code < codes_.size(); ++code)
    if (const uint64_t n = codes_[code].load(std::memory_order_relaxed)) sample(out, name, label("code", std::to_string(code)) + "," + labels, static_cast<double>(n));
}

void Answers::nonfinite(std::string& out, const std::string& name, const std::string& labels) const {
  sample(out, name, labels, static_cast<double>(nonfinite_.load(std::memory_order_relaxed)));
}

Metrics::Metrics(std::string model, std::string revision)
    : queue(kSeconds), inference(kSeconds), batch(kSizes), model_(std::move(model)), revision_(std::move(revision)) {}

void Metrics::set_artifact(const std::string& digest, const std::string& format, const std::string& precision, double load_seconds) {
  const std::lock_guard lock(mutex_);
  artifact_labels_ = label("digest", digest) + "," + label("format", format) + "," + label("precision", precision);
  load_seconds_ = load_seconds;
}

void Metrics::add_to_experiment(const std::string& name, int status, double seconds) {
  const std::lock_guard lock(mutex_);
  auto found = experiments_.find(name);
  if (found == experiments_.end()) {
    if (experiments_.size() >= kMaxExperiments || !is_experiment(name)) return;
    found = experiments_.try_emplace(name).first;
  }
  found->second.add(status, seconds);
}

std::string Metrics::render() const {
  std::string out;
  process(out);
  const std::string labels = label("model", model_) + "," + label("revision", revision_);
  answered(out, "slipway", "", {{labels, &users}});
  nonfinite(out, "slipway", "", labels, users);
  head(out, "slipway_queue_duration_seconds", "Waiting for a worker lane.", "histogram");
  queue.render(out, "slipway_queue_duration_seconds", "");
  head(out, "slipway_inference_duration_seconds", "Inside the model.", "histogram");
  inference.render(out, "slipway_inference_duration_seconds", "");
  head(out, "slipway_batch_size", "Samples per call of the model.", "histogram");
  batch.render(out, "slipway_batch_size", "");
  answered(out, "slipway_probe", kProbes, {{labels, &probes}});
  nonfinite(out, "slipway_probe", kProbes, labels, probes);
  head(out, "slipway_inflight_requests", "Requests taken and not answered.", "gauge");
  sample(out, "slipway_inflight_requests", "", static_cast<double>(inflight.load(std::memory_order_relaxed)));
  const std::lock_guard lock(mutex_);
  Labelled of_experiments;
  for (const auto& [name, answers] : experiments_) of_experiments.emplace_back(label("experiment", name) + "," + labels, &answers);
  answered(out, "slipway_experiment", ", requests of an experiment", of_experiments);
  head(out, "slipway_model_load_seconds", "Load, warm up, reproduce golden outputs.", "gauge");
  sample(out, "slipway_model_load_seconds", "", load_seconds_);
  head(out, "slipway_artifact_info", "The artifact served.", "gauge");
  if (!artifact_labels_.empty()) sample(out, "slipway_artifact_info", artifact_labels_, 1);
  return out;
}

}  // namespace slipway
