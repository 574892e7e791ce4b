// Open Inference Protocol v2 over gRPC: ModelInfer, ModelStreamInfer, metadata, readiness. The same lanes and limits as HTTP.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "app.hpp"

namespace slipway {

class GrpcServer {
 public:
  virtual ~GrpcServer() = default;
  // Takes no new calls and sends clients elsewhere (GOAWAY); those running may end until `deadline`. Does not wait.
  virtual void drain(std::chrono::steady_clock::time_point deadline) = 0;
  // Waits until all calls have ended, at most a second after the deadline of `drain`.
  virtual void stop() = 0;
};

// Throws Failure InvalidArguments when it cannot listen.
std::unique_ptr<GrpcServer> start_grpc(App& app, const std::string& host, uint16_t port, size_t max_message_bytes);

}  // namespace slipway
