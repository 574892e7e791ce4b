// A model that may be asked: loaded from verified files, warmed up, and proven on this node by its golden outputs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "artifact.hpp"
#include "backend.hpp"

namespace slipway {

struct Model {
  Artifact artifact;
  std::unique_ptr<Backend> backend;
  std::vector<std::string> labels;
  bool batched = false;         // rows of several requests may share a call
  size_t inline_elements = 0;   // inputs of at most so many elements run faster than a hand-over to a lane costs
  double load_seconds = 0;      // load, warm-up and golden outputs

  bool runs_inline(const std::vector<Tensor>& inputs) const {
    size_t count = 0;
    for (const Tensor& input : inputs) count += input.count();
    return count <= inline_elements;
  }
};

// `labels` replaces the artifact's when it is given. Warm-up covers one sample and, when requests are batched, `max_batch` rows.
// Throws Failure: ModelLoadFailed, GoldenMismatch, ArtifactCorrupt (golden files), InvalidArguments (labels).
std::unique_ptr<Model> load_model(Artifact artifact, int threads, int lanes, int64_t max_batch, const std::vector<std::string>* labels);

}  // namespace slipway
