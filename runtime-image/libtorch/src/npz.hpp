// Reads numpy's .npz: a zip of .npy files, stored or deflated. No pickles, no object arrays.
#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "tensors.hpp"

namespace slipway {

// Arrays by name. Throws Failure ArtifactCorrupt, with what is wrong.
std::map<std::string, Tensor> read_npz(const std::filesystem::path& path);

// One .npy. Throws std::runtime_error.
Tensor read_npy(std::string_view file);

}  // namespace slipway
