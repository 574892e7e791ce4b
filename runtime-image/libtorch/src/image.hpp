// Image file -> input tensor, as the model folder declares it. PNG by libpng, JPEG by libjpeg-turbo: both are kept secure by Debian.
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "artifact.hpp"
#include "tensors.hpp"

namespace slipway {

// Pixels of 8 bits, rows from the top, `channels` interleaved.
struct Picture {
  int width = 0, height = 0, channels = 0;
  std::vector<uint8_t> pixels;
};

// The batch of the model's only input. Throws BadRequest: not a PNG or JPEG, damaged, or too many pixels.
std::vector<Tensor> image_inputs(std::span<const std::string_view> files, const ImageSpec& spec, const TensorSpec& input);

// Upright pixels in one channel (L) or three (RGB).
Picture decode(std::string_view file, int channels);

// Pillow's bilinear resampling (a triangle filter, widened when shrinking, in the same fixed-point arithmetic), so that this server and the
// Python server compute the same tensor from the same file.
Picture resized(const Picture& picture, int width, int height);

}  // namespace slipway
