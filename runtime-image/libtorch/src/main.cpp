// `slipway-libtorch [serve]`: arguments, and the exit code of a run. The arguments are those of `slipway-runtime serve`, and some more.
#include <simdjson.h>

#include <charconv>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <map>

#include "cpu.hpp"
#include "failure.hpp"
#include "server.hpp"

namespace slipway {

namespace {

struct Option {
  std::string help;
  std::function<void(const std::string&)> set;
};

template <typename T>
std::function<void(const std::string&)> number(T& target) {
  return [&target](const std::string& text) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), target);
    if (error != std::errc() || end != text.data() + text.size() || target < T{}) throw std::invalid_argument("not a number of at least 0");
  };
}

std::function<void(const std::string&)> text(std::string& target) {
  return [&target](const std::string& value) { target = value; };
}

// A time such as 500us, 2ms or 1.5s.
std::chrono::microseconds duration_of(const std::string& text_value) {
  double value = 0;
  const auto [end, error] = std::from_chars(text_value.data(), text_value.data() + text_value.size(), value);
  const std::string unit(end, text_value.data() + text_value.size());
  const double scale = unit == "us" ? 1 : unit == "ms" ? 1e3 : unit == "s" ? 1e6 : text_value == "0" ? 1 : -1;
  if (error != std::errc() || !(value >= 0 && value * scale >= 0 && value * scale < 6e7)) throw std::invalid_argument("not a time such as 2ms, at most 60s");
  return std::chrono::microseconds(static_cast<int64_t>(value * scale));
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

std::optional<std::vector<std::string>> labels_of_environment() {
  const char* value = std::getenv("SLIPWAY_LABELS");
  if (!value || !*value) return std::nullopt;
  simdjson::dom::parser parser;
  simdjson::dom::element list;
  std::vector<std::string> labels;
  const std::string text_value = value;
  if (const auto error = parser.parse(text_value).get(list)) throw Failure("InvalidArguments", std::string("SLIPWAY_LABELS is not JSON: ") + simdjson::error_message(error));
  if (!list.is_array()) throw Failure("InvalidArguments", "SLIPWAY_LABELS must be a JSON list of strings");
  for (const simdjson::dom::element label : simdjson::dom::array(list.get_array())) {
    if (!label.is_string()) throw Failure("InvalidArguments", "SLIPWAY_LABELS must be a JSON list of strings");
    labels.emplace_back(std::string_view(label));
  }
  return labels;
}

using Options = std::map<std::string, Option>;

[[noreturn]] void print_help(const Options& options) {
  std::cout << "usage: slipway-libtorch [serve] --model-dir DIR --model-name NAME [--option VALUE | --option=VALUE]...\n";
  for (const auto& [name, option] : options) std::printf("  --%-18s %s\n", name.c_str(), option.help.c_str());
  std::exit(0);
}

void parse(const std::vector<std::string>& arguments, const Options& options) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    std::string name = arguments[i];
    if (name == "serve") continue;
    if (name == "--help" || name == "-h") print_help(options);
    const size_t equals = name.find('=');
    const bool joined = equals != std::string::npos;
    const std::string value = joined ? name.substr(equals + 1) : i + 1 < arguments.size() ? arguments[++i] : "";
    name = name.substr(0, equals);
    const auto option = name.starts_with("--") ? options.find(name.substr(2)) : options.end();
    if (option == options.end()) throw Failure("InvalidArguments", "unknown argument " + name + "; see --help");
    try {
      option->second.set(value);
    } catch (const std::exception& error) {
      throw Failure("InvalidArguments", name + " '" + value + "': " + error.what());
    }
  }
}

ServerOptions options_of(const std::vector<std::string>& arguments) {
  ServerOptions options;
  LaneOptions& lanes = options.app.lanes;
  Limits& limits = options.limits;
  lanes.lanes = 0;
  const auto delay = [&lanes](const std::string& value) { lanes.max_delay = duration_of(value); };
  // What the operator sets from serving.batching; an argument wins.
  std::vector<std::string> given;
  if (const std::string rows = environment("SLIPWAY_MAX_BATCH_SIZE"); !rows.empty()) given.push_back("--max-batch-size=" + rows);
  if (const std::string time = environment("SLIPWAY_MAX_DELAY"); !time.empty()) given.push_back("--max-delay=" + time);
  given.insert(given.end(), arguments.begin(), arguments.end());
  parse(given,
        {{"model-dir", {"the artifact's folder, as `pull` wrote it", text(options.model_dir)}},
         {"artifact-digest", {"the manifest digest that the folder must have (sha256:...)", text(options.artifact_digest)}},
         {"model-name", {"the model's name in paths", text(options.app.name)}},
         {"revision", {"the revision, reported in answers and metrics", text(options.app.revision)}},
         {"host", {"address to listen on (default: all)", text(options.host)}},
         {"port", {"HTTP port (8080)", number(options.port)}},
         {"grpc-port", {"gRPC port (0: none)", number(options.grpc_port)}},
         {"lanes", {"calls of the model at the same time (0: the CPU limit)", number(lanes.lanes)}},
         {"queue-size", {"requests that may wait for a lane; more get 429 (256)", number(lanes.queue_size)}},
         {"queue-bytes", {"bytes of tensors that may wait; more get 429 (268435456)", number(lanes.queue_bytes)}},
         {"max-batch-size", {"rows of one call of the model; 1: no batching (SLIPWAY_MAX_BATCH_SIZE, or 1)", number(lanes.max_batch)}},
         {"max-delay", {"how long a request waits for others to share a call with, such as 2ms (SLIPWAY_MAX_DELAY, or 0)", delay}},
         {"max-body-bytes", {"larger bodies get 413 (33554432)", number(limits.max_body_bytes)}},
         {"header-seconds", {"time for a client to send its headers (10)", number(limits.header_seconds)}},
         {"idle-seconds", {"time an idle connection is kept (75)", number(limits.idle_seconds)}},
         {"stuck-seconds", {"a longer call of the model turns liveness 503 (60)", number(options.app.stuck_seconds)}},
         {"drain-seconds", {"time after SIGTERM that new requests are answered (5)", number(options.drain_seconds)}}});
  if (options.model_dir.empty() || options.app.name.empty()) throw Failure("InvalidArguments", "--model-dir and --model-name are required");
  const int cpus = cpu_limit();
  if (lanes.lanes < 1) lanes.lanes = cpus;
  options.threads = std::max(1, cpus / lanes.lanes);
  lanes.max_batch = std::max<int64_t>(1, lanes.max_batch);
  options.labels = labels_of_environment();
  return options;
}

}  // namespace

int run(const std::vector<std::string>& arguments) {
  try {
    const ServerOptions options = options_of(arguments);
    if (!serve(options)) std::_Exit(0);
    return 0;
  } catch (const Failure& failure) {
    log_line("ERROR", failure.reason + ": " + failure.what());
    write_termination(failure.reason, failure.what());
    if (failure.reason == "ModelStuck") std::_Exit(exit_code(failure.reason));  // a thread is still in the model
    return exit_code(failure.reason);
  } catch (const std::exception& error) {
    log_line("ERROR", std::string("internal error: ") + error.what());
    write_termination("InternalError", error.what());
    return 1;
  }
}

}  // namespace slipway

int main(int count, char** arguments) { return slipway::run({arguments + 1, arguments + count}); }
