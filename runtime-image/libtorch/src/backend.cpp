#include "backend.hpp"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "failure.hpp"

namespace slipway {

namespace {

constexpr std::array<at::ScalarType, 13> kScalarTypes{at::kBool,  at::kByte, at::kUInt16, at::kUInt32, at::kUInt64,   at::kChar,  at::kShort,
                                                      at::kInt,   at::kLong, at::kHalf,   at::kBFloat16, at::kFloat, at::kDouble};

// A view on the request's bytes: the engine reads inputs where they lie. It keeps them, because outputs may be views on inputs.
at::Tensor borrowed(const Tensor& tensor) {
  const at::TensorOptions options(kScalarTypes[static_cast<size_t>(tensor.dtype)]);
  return at::from_blob(const_cast<std::byte*>(tensor.data), tensor.shape, [owner = tensor.owner](void*) {}, options);
}

Tensor owned(const at::Tensor& result, const TensorSpec& spec) {
  const auto known = std::find(kScalarTypes.begin(), kScalarTypes.end(), result.scalar_type());
  if (known == kScalarTypes.end()) throw std::runtime_error("output '" + spec.name + "' has the type " + c10::toString(result.scalar_type()));
  auto keeper = std::make_shared<at::Tensor>(result.to(at::kCPU).contiguous());
  const auto* data = static_cast<const std::byte*>(keeper->const_data_ptr());
  return {static_cast<DType>(known - kScalarTypes.begin()), keeper->sizes().vec(), data, keeper->nbytes(), std::move(keeper)};
}

std::vector<Tensor> named(const std::vector<at::Tensor>& results, const std::vector<TensorSpec>& specs) {
  if (results.size() < specs.size())
    throw std::runtime_error("the model returned " + std::to_string(results.size()) + " outputs, the signature has " + std::to_string(specs.size()));
  std::vector<Tensor> outputs;
  for (size_t i = 0; i < specs.size(); ++i) outputs.push_back(owned(results[i], specs[i]));
  return outputs;
}

// The tensors of what a TorchScript module returned: a tensor, a tuple or list of them, or a dict by output name.
std::vector<at::Tensor> flattened(const c10::IValue& value, const std::vector<TensorSpec>& specs) {
  std::vector<at::Tensor> results;
  if (value.isTensor()) {
    results.push_back(value.toTensor());
  } else if (value.isTuple()) {
    for (const auto& item : value.toTupleRef().elements()) results.push_back(item.toTensor());
  } else if (value.isTensorList()) {
    results = value.toTensorVector();
  } else if (value.isGenericDict()) {
    const auto dict = value.toGenericDict();
    for (const auto& spec : specs) {
      const auto found = dict.find(spec.name);
      if (found == dict.end()) throw std::runtime_error("the model returned no output '" + spec.name + "'");
      results.push_back(found->value().toTensor());
    }
  } else {
    throw std::runtime_error("the model returned a " + value.tagKind() + ", not tensors");
  }
  return results;
}

class TorchScript final : public Backend {
 public:
  explicit TorchScript(const Artifact& artifact) : outputs_(artifact.outputs), module_(torch::jit::load((artifact.directory / artifact.entry).string(), at::kCPU)) {
    module_.eval();
    if (module_.hasattr("training")) module_ = torch::jit::freeze(module_);  // a frozen one has no such attribute
    const size_t arguments = module_.get_method("forward").function().getSchema().arguments().size() - 1;
    if (arguments < artifact.inputs.size())
      throw Failure("SignatureMismatch", "forward takes " + std::to_string(arguments) + " arguments, the signature has " + std::to_string(artifact.inputs.size()) + " inputs");
  }

  std::vector<Tensor> infer(const std::vector<Tensor>& inputs) override {
    const c10::InferenceMode guard;
    std::vector<c10::IValue> arguments;
    arguments.reserve(inputs.size());
    for (const Tensor& input : inputs) arguments.emplace_back(borrowed(input));
    return named(flattened(module_.forward(std::move(arguments)), outputs_), outputs_);
  }

  std::string platform() const override { return "pytorch_torchscript"; }

 private:
  std::vector<TensorSpec> outputs_;
  torch::jit::Module module_;
};

class AotInductor final : public Backend {
 public:
  AotInductor(const Artifact& artifact, int lanes)
      : outputs_(artifact.outputs), loader_((artifact.directory / artifact.entry).string(), "model", false, static_cast<size_t>(lanes)) {}

  std::vector<Tensor> infer(const std::vector<Tensor>& inputs) override {
    const c10::InferenceMode guard;
    std::vector<at::Tensor> arguments;
    arguments.reserve(inputs.size());
    for (const Tensor& input : inputs) arguments.push_back(borrowed(input));
    return named(loader_.run(arguments), outputs_);
  }

  std::string platform() const override { return "pytorch_aotinductor"; }

 private:
  std::vector<TensorSpec> outputs_;
  torch::inductor::AOTIModelPackageLoader loader_;
};

std::string first_lines(const std::string& text) { return text.substr(0, 1500); }

}  // namespace

std::unique_ptr<Backend> load_backend(const Artifact& artifact, int threads, int lanes) {
  enter_inference_thread(threads);
  try {
    if (artifact.format == "TorchScript") return std::make_unique<TorchScript>(artifact);
    if (artifact.format == "AOTInductor") return std::make_unique<AotInductor>(artifact, lanes);
  } catch (const Failure&) {
    throw;
  } catch (const std::exception& error) {
    throw Failure("ModelLoadFailed", first_lines(artifact.entry + ": " + error.what()));
  }
  throw Failure("ModelLoadFailed", "format '" + artifact.format + "' is not one this server has a backend for (TorchScript, AOTInductor)");
}

void enter_inference_thread(int threads) {
  static std::once_flag once;
  std::call_once(once, [] { at::set_num_interop_threads(1); });
  at::set_num_threads(threads);
}

std::string torch_version() { return TORCH_VERSION; }

}  // namespace slipway
