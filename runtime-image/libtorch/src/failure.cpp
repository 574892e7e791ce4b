#include "failure.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <utility>

#include "json.hpp"

namespace slipway {

namespace {

constexpr std::array<std::pair<std::string_view, int>, 10> kExitCodes{{{"SignatureMismatch", 25},
                                                                      {"SignatureMissing", 31},
                                                                      {"NonFiniteOutputs", 41},
                                                                      {"ArtifactCorrupt", 60},
                                                                      {"ArtifactNotFound", 61},
                                                                      {"ModelLoadFailed", 62},
                                                                      {"GoldenMismatch", 63},
                                                                      {"InvalidArguments", 64},
                                                                      {"ModelStuck", 65},
                                                                      {"InternalError", 1}}};
constexpr size_t kMaxMessage = 1800;  // the kubelet cuts the whole at 4,096 bytes, and escaping at most doubles what is not binary

// The middle is cut: causes stand at both ends.
std::string shortened(const std::string& text) {
  if (text.size() <= kMaxMessage) return text;
  return text.substr(0, 1200) + " ... " + text.substr(text.size() - 590);
}

}  // namespace

int exit_code(std::string_view reason) {
  for (const auto& [name, code] : kExitCodes)
    if (name == reason) return code;
  return 1;
}

void write_termination(const std::string& reason, const std::string& message) {
  const char* wanted = std::getenv("SLIPWAY_TERMINATION_LOG");
  const std::string path = wanted ? wanted : "/dev/termination-log";
  std::string text = "{\"reason\":";
  json::append_string(text, reason);
  text += ",\"message\":";
  json::append_string(text, shortened(message));
  text += "}";
  std::FILE* file = std::fopen(path.c_str(), "wb");
  if (!file || std::fwrite(text.data(), 1, text.size(), file) != text.size()) log_line("WARNING", "cannot write the termination message to " + path);
  if (file) std::fclose(file);
}

void log_line(std::string_view level, const std::string& text) {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  tm parts{};
  gmtime_r(&now.tv_sec, &parts);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y-%m-%d %H:%M:%S", &parts);
  std::fprintf(stderr, "%s,%03ld %.*s slipway-libtorch %s\n", stamp, now.tv_nsec / 1000000, static_cast<int>(level.size()), level.data(), text.c_str());
}

}  // namespace slipway
