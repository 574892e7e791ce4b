// The life of the server: listen early, load in the background, serve, drain without losing a request.
#pragma once

#include <memory>
#include <string>

#include "app.hpp"
#include "connection.hpp"

namespace slipway {

struct ServerOptions {
  std::string host;
  uint16_t port = 8080, grpc_port = 0;  // grpc_port 0: no gRPC
  double drain_seconds = 5;
  Limits limits;
  AppOptions app;
  std::string model_dir, artifact_digest;
  std::optional<std::vector<std::string>> labels;
  int threads = 1;  // of one call
};

// Serves until SIGTERM or SIGINT. Returns whether all threads have ended; if not, a call into native code hangs, and only leaving at once
// ends the process. Throws Failure: what loading found.
bool serve(const ServerOptions& options);

}  // namespace slipway
