// JSON values -> tensors.
#pragma once

#include <simdjson.h>

#include <string>

#include "artifact.hpp"

namespace slipway {

// The fields of a JSON object; throws BadRequest when the body is no JSON object. Valid until the thread's next call.
simdjson::dom::object json_object(const std::string& body, size_t length);

// Lists of numbers or booleans (flat or nested), or one number, as `dtype`; null is NaN in a float tensor. The shape is that of the
// nesting. Throws BadRequest: ragged lists, strings, fractions for integers, or numbers that the type cannot hold.
Tensor tensor_of(const std::string& name, simdjson::dom::element data, DType dtype);

// The tensor with its declared shape: flat data get it, nested data must have it.
Tensor reshaped(const std::string& name, Tensor tensor, simdjson::dom::element shape);

// A declared shape. Throws BadRequest.
Shape shape_of(const std::string& name, simdjson::dom::element shape);

}  // namespace slipway
