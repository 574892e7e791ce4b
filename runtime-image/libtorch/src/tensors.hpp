// Tensors as the protocol and the signature see them: data types, bytes in row-major order, shape checks. No torch here.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace slipway {

enum class DType : uint8_t { Bool, UInt8, UInt16, UInt32, UInt64, Int8, Int16, Int32, Int64, Float16, BFloat16, Float32, Float64 };

struct DTypeInfo {
  std::string_view name;  // of numpy and torch, as the signature has it
  std::string_view wire;  // of the Open Inference Protocol
  size_t size;            // bytes of an element
  char kind;              // b: bool, u: unsigned, i: integer, f: float
};

const DTypeInfo& info(DType dtype);
std::optional<DType> dtype_named(std::string_view name);
std::optional<DType> dtype_of_wire(std::string_view wire);

using Shape = std::vector<int64_t>;

// A dimension of the signature: a size, or a name (dynamic) when `name` is not empty.
struct Dim {
  int64_t size = -1;
  std::string name;
};

struct TensorSpec {
  std::string name;
  DType dtype;
  std::vector<Dim> shape;
};

// Bytes that `owner` keeps alive; never written to once made.
struct Tensor {
  DType dtype = DType::Float32;
  Shape shape;
  const std::byte* data = nullptr;
  size_t bytes = 0;
  std::shared_ptr<const void> owner;

  size_t count() const { return bytes / info(dtype).size; }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data);
  }
};

// Whether a float tensor has NaN or infinite values: those whose exponent bits are all set.
bool has_nonfinite(const Tensor& tensor);

// An owned, uninitialised buffer, aligned for vector loads.
std::shared_ptr<std::byte> allocate(size_t bytes);

// Bytes of a shape; nullopt when it overflows 2^62.
std::optional<size_t> bytes_of(DType dtype, std::span<const int64_t> shape);

// A copy of `bytes` that is aligned, or a view on them when they are aligned already.
Tensor tensor_on(DType dtype, Shape shape, const void* bytes, size_t size, std::shared_ptr<const void> owner);

// Element as double; for comparisons and probabilities, not for the hot path.
double value_at(const Tensor& tensor, size_t index);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);
float bfloat_to_float(uint16_t bits);
uint16_t float_to_bfloat(float value);

std::string describe(const TensorSpec& spec);        // FP32 [batch, 1, 8, 8]
std::string list_of(std::span<const int64_t> shape);  // [1, 8, 8]

// A client's mistake or a state it must know of; what() is what it reads in `error`.
class HttpError : public std::runtime_error {
 public:
  HttpError(int status, const std::string& message, int retry_after = 0) : std::runtime_error(message), status(status), retry_after(retry_after) {}
  int status;
  int retry_after;  // seconds, 0: no such header
};

struct BadRequest : HttpError {
  explicit BadRequest(const std::string& message) : HttpError(400, message) {}
};

// Shapes against the signature; a named dim must have one size everywhere. Throws BadRequest that names the tensor, wanted and got.
void check_shapes(std::span<const Tensor> tensors, std::span<const TensorSpec> specs);

// Rows of a request that may share a call with others: 0 when the signature's tensors do not all begin with the same named dim.
bool is_batched(std::span<const TensorSpec> inputs, std::span<const TensorSpec> outputs);

// Concatenates along the first dimension; all shapes agree in the others.
Tensor concatenate(std::span<const Tensor* const> parts);

// Rows [from, from + rows) as a view.
Tensor rows_of(const Tensor& tensor, int64_t from, int64_t rows);

}  // namespace slipway
