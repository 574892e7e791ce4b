#include "tensors.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>

namespace slipway {

namespace {

constexpr std::array<DTypeInfo, 13> kTypes{{{"bool", "BOOL", 1, 'b'},
                                            {"uint8", "UINT8", 1, 'u'},
                                            {"uint16", "UINT16", 2, 'u'},
                                            {"uint32", "UINT32", 4, 'u'},
                                            {"uint64", "UINT64", 8, 'u'},
                                            {"int8", "INT8", 1, 'i'},
                                            {"int16", "INT16", 2, 'i'},
                                            {"int32", "INT32", 4, 'i'},
                                            {"int64", "INT64", 8, 'i'},
                                            {"float16", "FP16", 2, 'f'},
                                            {"bfloat16", "BF16", 2, 'f'},
                                            {"float32", "FP32", 4, 'f'},
                                            {"float64", "FP64", 8, 'f'}}};
constexpr size_t kAlignment = 64;

std::optional<DType> find(std::string_view DTypeInfo::* field, std::string_view value) {
  for (size_t i = 0; i < kTypes.size(); ++i)
    if (kTypes[i].*field == value) return static_cast<DType>(i);
  return std::nullopt;
}

template <typename T>
T read(const Tensor& tensor, size_t index) {
  T value;
  std::memcpy(&value, tensor.data + index * sizeof(T), sizeof(T));
  return value;
}

}  // namespace

const DTypeInfo& info(DType dtype) { return kTypes[static_cast<size_t>(dtype)]; }
std::optional<DType> dtype_named(std::string_view name) { return find(&DTypeInfo::name, name); }
std::optional<DType> dtype_of_wire(std::string_view wire) { return find(&DTypeInfo::wire, wire); }

namespace {

template <typename Bits>
bool any_with(const Tensor& tensor, Bits exponent) {
  const Bits* bits = tensor.as<Bits>();
  bool found = false;
  for (size_t i = 0; i < tensor.count(); ++i) found |= (bits[i] & exponent) == exponent;  // no early end: it is vectorised
  return found;
}

}  // namespace

bool has_nonfinite(const Tensor& tensor) {
  switch (tensor.dtype) {
    case DType::Float16: return any_with<uint16_t>(tensor, 0x7c00);
    case DType::BFloat16: return any_with<uint16_t>(tensor, 0x7f80);
    case DType::Float32: return any_with<uint32_t>(tensor, 0x7f800000);
    case DType::Float64: return any_with<uint64_t>(tensor, 0x7ff0000000000000);
    default: return false;
  }
}

std::shared_ptr<std::byte> allocate(size_t bytes) {
  const size_t rounded = (std::max<size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
  if (!memory) throw std::bad_alloc();
  return {memory, [](std::byte* p) { std::free(p); }};
}

std::optional<size_t> bytes_of(DType dtype, std::span<const int64_t> shape) {
  uint64_t total = info(dtype).size;
  for (const int64_t dim : shape) {
    if (dim < 0) return std::nullopt;
    if (dim != 0 && total > (uint64_t{1} << 62) / static_cast<uint64_t>(dim)) return std::nullopt;
    total *= static_cast<uint64_t>(dim);
  }
  return total;
}

Tensor tensor_on(DType dtype, Shape shape, const void* bytes, size_t size, std::shared_ptr<const void> owner) {
  const auto* data = static_cast<const std::byte*>(bytes);
  if (reinterpret_cast<uintptr_t>(data) % info(dtype).size != 0 || !owner) {
    auto copy = allocate(size);
    if (size) std::memcpy(copy.get(), data, size);
    data = copy.get();
    owner = std::move(copy);
  }
  return {dtype, std::move(shape), data, size, std::move(owner)};
}

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16, exponent = (bits >> 10) & 0x1FU, mantissa = bits & 0x3FFU;
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(static_cast<float>(mantissa) * 0x1p-24F));
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000U | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

uint16_t float_to_half(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), sign = (bits >> 16) & 0x8000U, magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) return static_cast<uint16_t>(sign | 0x7E00U);
  if (magnitude >= 0x47800000U) return static_cast<uint16_t>(sign | 0x7C00U);  // 65,536 and above; 65,520 to there rounds up below
  if (magnitude < 0x38800000U)  // subnormal: adding 2^-1 shifts the mantissa, rounded to nearest even by the hardware
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5F) - 0x3F000000U));
  const uint32_t odd = (magnitude >> 13) & 1U;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000U + 0xFFFU + odd) >> 13));
}

float bfloat_to_float(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

uint16_t float_to_bfloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (value != value) return 0x7FC0U;
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

double value_at(const Tensor& tensor, size_t index) {
  switch (tensor.dtype) {
    case DType::Bool:
    case DType::UInt8: return read<uint8_t>(tensor, index);
    case DType::UInt16: return read<uint16_t>(tensor, index);
    case DType::UInt32: return read<uint32_t>(tensor, index);
    case DType::UInt64: return static_cast<double>(read<uint64_t>(tensor, index));
    case DType::Int8: return read<int8_t>(tensor, index);
    case DType::Int16: return read<int16_t>(tensor, index);
    case DType::Int32: return read<int32_t>(tensor, index);
    case DType::Int64: return static_cast<double>(read<int64_t>(tensor, index));
    case DType::Float16: return half_to_float(read<uint16_t>(tensor, index));
    case DType::BFloat16: return bfloat_to_float(read<uint16_t>(tensor, index));
    case DType::Float32: return read<float>(tensor, index);
    case DType::Float64: return read<double>(tensor, index);
  }
  return std::numeric_limits<double>::quiet_NaN();
}

std::string list_of(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t dim : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(dim);
  return text + "]";
}

std::string describe(const TensorSpec& spec) {
  std::string text = std::string(info(spec.dtype).wire) + " [";
  for (size_t i = 0; i < spec.shape.size(); ++i)
    text += (i ? ", " : "") + (spec.shape[i].name.empty() ? std::to_string(spec.shape[i].size) : spec.shape[i].name);
  return text + "]";
}

void check_shapes(std::span<const Tensor> tensors, std::span<const TensorSpec> specs) {
  std::vector<std::pair<std::string_view, int64_t>> sizes;  // of the named dims seen so far; few, so a list beats a map
  for (size_t i = 0; i < specs.size(); ++i) {
    const TensorSpec& spec = specs[i];
    const Shape& shape = tensors[i].shape;
    const auto text = [&] { return "input '" + spec.name + "': expected " + describe(spec) + ", got shape " + list_of(shape); };
    if (shape.size() != spec.shape.size()) throw BadRequest(text());
    for (size_t d = 0; d < shape.size(); ++d) {
      const Dim& want = spec.shape[d];
      int64_t expected = want.size;
      if (!want.name.empty()) {
        expected = shape[d];
        bool known = false;
        for (const auto& [name, size] : sizes)
          if (name == want.name) expected = size, known = true;
        if (!known) sizes.emplace_back(want.name, expected);
      }
      if (shape[d] == expected && shape[d] != 0) continue;
      const std::string size = shape[d] == 0      ? "at least 1"
                               : want.name.empty() ? std::to_string(expected)
                                                   : want.name + " = " + std::to_string(expected);
      throw BadRequest(text() + " (dimension " + std::to_string(d) + " must be " + size + ")");
    }
  }
}

bool is_batched(std::span<const TensorSpec> inputs, std::span<const TensorSpec> outputs) {
  if (inputs.empty() || inputs[0].shape.empty()) return false;
  const std::string& batch = inputs[0].shape[0].name;
  const auto begins = [&](const TensorSpec& spec) {
    if (spec.shape.empty() || spec.shape[0].name != batch) return false;
    for (size_t d = 1; d < spec.shape.size(); ++d)
      if (spec.shape[d].name == batch) return false;  // the batch's size shows elsewhere too, so rows are not independent
    return true;
  };
  return !batch.empty() && std::all_of(inputs.begin(), inputs.end(), begins) && std::all_of(outputs.begin(), outputs.end(), begins);
}

Tensor concatenate(std::span<const Tensor* const> parts) {
  size_t bytes = 0;
  Shape shape = parts[0]->shape;
  shape[0] = 0;
  for (const Tensor* part : parts) bytes += part->bytes, shape[0] += part->shape[0];
  auto memory = allocate(bytes);
  size_t at = 0;
  for (const Tensor* part : parts) {
    if (part->bytes) std::memcpy(memory.get() + at, part->data, part->bytes);
    at += part->bytes;
  }
  const std::byte* data = memory.get();
  return {parts[0]->dtype, std::move(shape), data, bytes, std::move(memory)};
}

Tensor rows_of(const Tensor& tensor, int64_t from, int64_t rows) {
  const size_t row = tensor.shape[0] ? tensor.bytes / static_cast<size_t>(tensor.shape[0]) : 0;
  Tensor view = tensor;
  view.shape[0] = rows;
  view.data += row * static_cast<size_t>(from);
  view.bytes = row * static_cast<size_t>(rows);
  return view;
}

}  // namespace slipway
