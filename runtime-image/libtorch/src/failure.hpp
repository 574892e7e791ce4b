// How a run that cannot serve ends: a reason, its exit code and the termination message (docs/design/0001-interfaces.md, "Exit codes and reasons").
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace slipway {

// A finding that ends the server: `reason` is one of slipway_runtime.reasons.EXIT_CODES, what() says what was found, why and where.
class Failure : public std::runtime_error {
 public:
  Failure(std::string reason, const std::string& message) : std::runtime_error(message), reason(std::move(reason)) {}
  std::string reason;
};

// The exit code of a reason that this server raises; 1 (InternalError) for any other.
int exit_code(std::string_view reason);

// Writes {"reason", "message"}, at most 4,096 bytes, to SLIPWAY_TERMINATION_LOG or /dev/termination-log; a failure to write is only logged.
void write_termination(const std::string& reason, const std::string& message);

// One line on stderr, as the Python server logs: time, level, text.
void log_line(std::string_view level, const std::string& text);

}  // namespace slipway
