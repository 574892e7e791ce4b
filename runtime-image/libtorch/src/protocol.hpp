// Open Inference Protocol v2 over HTTP: body -> tensors, tensors -> answer, in JSON and with the binary tensor extension.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "artifact.hpp"
#include "messages.hpp"
#include "tensors.hpp"

namespace slipway {

struct WantedOutput {
  size_t index = 0;     // in the signature
  bool binary = false;  // as raw bytes behind the JSON
};

struct InferRequest {
  std::vector<Tensor> inputs;  // in the order of the signature
  std::vector<WantedOutput> outputs;
  std::optional<std::string> id;
};

// Decodes and checks. Tensors of the binary extension are views on the body, which they keep alive. Throws BadRequest, which names the
// tensor, what was expected and what came.
InferRequest decode_infer(Request& request, const Artifact& artifact);

// NaN and infinities are null in JSON; binary tensors carry them.
Response encode_infer(const InferRequest& request, const std::vector<Tensor>& outputs, const Artifact& artifact, const std::string& model, const std::string& revision);

// GET /v2/models/{model}
std::string metadata(const Artifact& artifact, const std::string& model, const std::string& revision, const std::string& platform);

// The values of `tensor` as a flat JSON list.
void append_data(std::string& out, const Tensor& tensor);

// The index of a tensor's name; throws BadRequest that lists what there is. `what` is "input" or "output".
size_t index_of(const std::vector<TensorSpec>& specs, std::string_view name, std::string_view what);

}  // namespace slipway
