// A converted model on disk, and the check of every byte before anything is loaded: digest -> manifest.json -> slipway.json -> files.
// The same chain as slipway_runtime/artifact.py, with the same reasons.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tensors.hpp"

namespace slipway {

struct Golden {
  std::string inputs, outputs;  // paths of npz files
  double max_absolute_error = 0;
};

// How an image becomes a tensor: (pixel * scale - mean) / std; `mode` L or RGB, `layout` NCHW or NHWC.
struct ImageSpec {
  std::string mode = "RGB", layout = "NCHW";
  int height = 0, width = 0;
  double scale = 1.0 / 255;
  std::vector<double> mean{0.0}, std{1.0};
};

struct Artifact {
  std::filesystem::path directory;
  std::string digest, format, precision, entry;
  std::vector<TensorSpec> inputs, outputs;
  std::vector<std::string> labels;
  std::optional<ImageSpec> image;
  std::optional<Golden> golden;
};

// Checks and describes an artifact. `digest` empty trusts manifest.json as it lies there.
// Throws Failure: ArtifactNotFound without manifest.json; ArtifactCorrupt, with the file and both hashes, when anything differs;
// SignatureMissing; ModelLoadFailed for a data type or preprocessing that cannot be served.
Artifact open_artifact(const std::filesystem::path& directory, const std::string& digest);

}  // namespace slipway
