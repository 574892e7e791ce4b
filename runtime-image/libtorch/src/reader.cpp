#include "reader.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace slipway {

namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::element_type;

constexpr size_t kKeptBytes = 4 << 20;

[[noreturn]] void wrong_kind(const std::string& name, DType dtype) {
  const char kind = info(dtype).kind;
  const std::string wanted = kind == 'b' ? "booleans" : kind == 'f' ? "numbers" : "integers";
  throw BadRequest("input '" + name + "': expected " + wanted + " for " + std::string(info(dtype).wire) + ", got other values");
}

// Collects the leaves of nested lists as T and the shape of the nesting.
template <typename T, DType kType>
class Collector {
 public:
  Collector(const std::string& name, size_t room) : name_(name) { values_.reserve(room); }

  Tensor tensor(element data) {
    visit(data, 0);
    auto memory = allocate(values_.size() * sizeof(T));
    if (!values_.empty()) std::memcpy(memory.get(), values_.data(), values_.size() * sizeof(T));
    const std::byte* bytes = memory.get();
    return {kType, std::move(shape_), bytes, values_.size() * sizeof(T), std::move(memory)};
  }

 private:
  void visit(element value, size_t depth) {
    if (!value.is_array()) {
      if (depth != shape_.size()) ragged();
      leaves_ = true;
      values_.push_back(number(value));
      return;
    }
    const array list(value.get_array());
    int64_t count = 0;
    const bool first = depth == shape_.size();
    if (first) {
      if (leaves_ || depth > 32) ragged();
      shape_.push_back(-1);
    }
    for (const element item : list) {
      if (!item.is_array() && depth + 1 == shape_.size()) values_.push_back(number(item)), leaves_ = true;  // the hot loop: a flat list
      else visit(item, depth + 1);
      ++count;
    }
    if (shape_[depth] == -1) shape_[depth] = count;
    else if (shape_[depth] != count) ragged();
  }

  [[noreturn]] void ragged() const { throw BadRequest("input '" + name_ + "': the nested lists are ragged or not numeric"); }

  T number(element value) {
    if constexpr (kType == DType::Bool) {
      if (value.type() != element_type::BOOL) wrong_kind(name_, kType);
      return static_cast<T>(bool(value));
    } else if constexpr (kType == DType::Float32 || kType == DType::Float64 || kType == DType::Float16 || kType == DType::BFloat16) {
      return real(value);
    } else {
      switch (value.type()) {
        case element_type::INT64: return in_range(int64_t(value));
        case element_type::UINT64: return in_range(uint64_t(value));
        default: wrong_kind(name_, kType);
      }
    }
  }

  T real(element value) {
    double number = 0;
    switch (value.type()) {
      case element_type::DOUBLE: number = double(value); break;
      case element_type::INT64: number = static_cast<double>(int64_t(value)); break;
      case element_type::UINT64: number = static_cast<double>(uint64_t(value)); break;
      case element_type::NULL_VALUE: number = std::numeric_limits<double>::quiet_NaN(); break;
      default: wrong_kind(name_, kType);
    }
    if constexpr (kType == DType::Float64) return number;
    // Converting a double beyond the largest float is undefined in C++; such a value is refused below in any case.
    constexpr double kMax = kType == DType::Float16 ? 65519.99 : kType == DType::BFloat16 ? 3.3961775e38 : 3.4028235677973366e38;
    if (std::abs(number) >= kMax) throw BadRequest("input '" + name_ + "': a value is too large for " + std::string(info(kType).name));
    if constexpr (kType == DType::Float16) return float_to_half(static_cast<float>(number));
    if constexpr (kType == DType::BFloat16) return float_to_bfloat(static_cast<float>(number));
    if constexpr (kType == DType::Float32) return static_cast<float>(number);
  }

  template <typename Got>
  T in_range(Got value) const {
    if (std::in_range<T>(value)) return static_cast<T>(value);
    using L = std::numeric_limits<T>;
    throw BadRequest("input '" + name_ + "': expected values of " + std::string(info(kType).name) + " from " + std::to_string(L::min()) + " to " +
                     std::to_string(L::max()) + ", got one outside");
  }

  const std::string& name_;
  std::vector<T> values_;
  Shape shape_;
  bool leaves_ = false;
};

template <typename T, DType kType>
Tensor collected(const std::string& name, element data) {
  return Collector<T, kType>(name, data.is_array() ? array(data.get_array()).size() : 1).tensor(data);
}

}  // namespace

simdjson::dom::object json_object(const std::string& body, size_t length) {
  thread_local simdjson::dom::parser parser;
  if (parser.capacity() > kKeptBytes && length < kKeptBytes / 4) parser = simdjson::dom::parser();  // one huge body must not hold its memory for ever
  element value;
  const bool padded = body.capacity() - length >= simdjson::SIMDJSON_PADDING && length == body.size();
  const auto error = parser.parse(body.data(), length, !padded).get(value);
  if (error) throw BadRequest(std::string("the body is not JSON: ") + simdjson::error_message(error));
  simdjson::dom::object object;
  if (value.get(object) != simdjson::SUCCESS) throw BadRequest("the body must be a JSON object");
  return object;
}

Tensor tensor_of(const std::string& name, element data, DType dtype) {
  switch (dtype) {
    case DType::Bool: return collected<uint8_t, DType::Bool>(name, data);
    case DType::UInt8: return collected<uint8_t, DType::UInt8>(name, data);
    case DType::UInt16: return collected<uint16_t, DType::UInt16>(name, data);
    case DType::UInt32: return collected<uint32_t, DType::UInt32>(name, data);
    case DType::UInt64: return collected<uint64_t, DType::UInt64>(name, data);
    case DType::Int8: return collected<int8_t, DType::Int8>(name, data);
    case DType::Int16: return collected<int16_t, DType::Int16>(name, data);
    case DType::Int32: return collected<int32_t, DType::Int32>(name, data);
    case DType::Int64: return collected<int64_t, DType::Int64>(name, data);
    case DType::Float16: return collected<uint16_t, DType::Float16>(name, data);
    case DType::BFloat16: return collected<uint16_t, DType::BFloat16>(name, data);
    case DType::Float32: return collected<float, DType::Float32>(name, data);
    case DType::Float64: return collected<double, DType::Float64>(name, data);
  }
  throw BadRequest("input '" + name + "' has an unknown type");
}

Shape shape_of(const std::string& name, element value) {
  array list;
  Shape shape;
  bool good = value.get(list) == simdjson::SUCCESS;
  if (good)
    for (const element dim : list) {
      int64_t size = 0;
      good = good && dim.type() == element_type::INT64 && dim.get(size) == simdjson::SUCCESS && size > 0;
      shape.push_back(size);
    }
  if (!good) throw BadRequest("input '" + name + "': 'shape' must be a list of positive integers, got " + simdjson::minify(value).substr(0, 200));
  return shape;
}

Tensor reshaped(const std::string& name, Tensor tensor, element value) {
  Shape shape = shape_of(name, value);
  if (tensor.shape.size() > 1 && tensor.shape != shape)
    throw BadRequest("input '" + name + "': declared shape " + list_of(shape) + ", but the data are nested as " + list_of(tensor.shape));
  const auto bytes = bytes_of(tensor.dtype, shape);
  if (!bytes || *bytes != tensor.bytes) {
    const std::string needs = bytes ? std::to_string(*bytes / info(tensor.dtype).size) : "too many";
    throw BadRequest("input '" + name + "': shape " + list_of(shape) + " needs " + needs + " values, got " + std::to_string(tensor.count()));
  }
  tensor.shape = std::move(shape);
  return tensor;
}

}  // namespace slipway
