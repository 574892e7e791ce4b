// `/docs` and `/openapi.json`: what this server serves and how to ask it. Self-contained: no script or style from elsewhere.
#pragma once

#include <string>

#include "model.hpp"

namespace slipway {

std::string docs_page(const Model& model, const std::string& name, const std::string& revision);
std::string openapi_json(const Model& model, const std::string& name, const std::string& revision);

}  // namespace slipway
