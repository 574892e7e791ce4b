// The values that pass between a connection and the handlers; no sockets, no model here.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "json.hpp"
#include "tensors.hpp"

namespace slipway {

// The header x-slipway-probe: not a request of a user, so it is counted apart; Golden also asks for the golden inputs to be replayed.
enum class Probe { None, Golden, Other };

struct Request {
  std::string method, path, content_type;      // path without the query
  std::optional<std::string> header_length;    // Inference-Header-Content-Length: the binary tensor extension
  Probe probe = Probe::None;
  std::string experiment;                      // x-slipway-experiment, which the route of an A/B experiment sets; empty: none
  std::shared_ptr<std::string> body = std::make_shared<std::string>();
};

struct Response {
  int status = 200;
  std::string body;
  std::string_view content_type = "application/json";
  std::vector<std::pair<std::string, std::string>> headers;
};

inline Response error_response(const HttpError& error) {
  Response response{error.status, "{\"error\":" + json::quoted(error.what()) + "}", "application/json", {}};
  if (error.retry_after) response.headers.emplace_back("retry-after", std::to_string(error.retry_after));
  return response;
}

}  // namespace slipway
