// `/predict`: plain JSON -> inputs, and outputs -> class, label and probability.
#pragma once

#include <string>
#include <vector>

#include "artifact.hpp"
#include "messages.hpp"

namespace slipway {

// Decodes {"instances": [sample, ...]} or {"inputs": tensor or {name: tensor}}; a single sample under `inputs` may leave out the batch
// dimension. Throws BadRequest.
std::vector<Tensor> decode_plain(const Request& request, const Artifact& artifact);

// One sample gives `prediction`, `label` (when there are labels) and `probability`; `predictions` lists them for a batch, or always with
// `as_list`. Outputs that are no class scores are returned as nested lists under `outputs`. Throws HttpError 500: scores not finite.
std::string predicted(const std::vector<Tensor>& outputs, const Artifact& artifact, const std::vector<std::string>& labels, bool as_list, const std::string& model,
                      const std::string& revision);

}  // namespace slipway
