// A model that may be asked: loaded from verified files, warmed up, and proven on this node by its golden outputs.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "artifact.hpp"
#include "backend.hpp"

namespace slipway {

// Inputs that fit one request and what they must give, within `limit` of every element.
struct GoldenBatch {
  std::vector<Tensor> inputs, outputs;
  double limit = 0;
};

struct Model {
  Artifact artifact;
  std::unique_ptr<Backend> backend;
  std::vector<std::string> labels;
  bool batched = false;         // rows of several requests may share a call
  size_t inline_elements = 0;   // inputs of at most so many elements run faster than a hand-over to a lane costs
  double load_seconds = 0;      // load, warm-up and golden outputs
  std::optional<GoldenBatch> golden;  // to be replayed when a probe asks for it; none when the artifact has none

  bool runs_inline(const std::vector<Tensor>& inputs) const {
    size_t count = 0;
    for (const Tensor& input : inputs) count += input.count();
    return count <= inline_elements;
  }
};

// `labels` replaces the artifact's when it is given. Warm-up covers one sample and, when requests are batched, `max_batch` rows.
// Throws Failure: ModelLoadFailed, GoldenMismatch, ArtifactCorrupt (golden files), InvalidArguments (labels).
std::unique_ptr<Model> load_model(Artifact artifact, int threads, int lanes, int64_t max_batch, const std::vector<std::string>* labels);

// How the answer to the golden inputs, which the model must have, differs from the golden outputs; none when it does not.
std::optional<std::string> golden_difference(const Model& model, const std::vector<Tensor>& got);

}  // namespace slipway
