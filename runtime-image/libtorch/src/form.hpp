// The files of an upload: multipart/form-data field `image`, or the raw image as the body.
#pragma once

#include <string_view>
#include <vector>

#include "messages.hpp"

namespace slipway {

bool is_upload(std::string_view content_type);

// The image files in order, as views on the body. Throws HttpError: 400 for a malformed form, no field `image`, or more than 256; 415.
std::vector<std::string_view> uploaded_images(const Request& request);

}  // namespace slipway
