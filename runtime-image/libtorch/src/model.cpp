#include "model.hpp"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cmath>
#include <limits>

#include "failure.hpp"
#include "npz.hpp"

namespace slipway {

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kWarmUpRuns = 20;
constexpr double kWarmUpSeconds = 2.0, kInlineSeconds = 0.0001;

double seconds_since(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

void check_labels(const std::vector<std::string>& labels, const TensorSpec& output) {
  if (labels.empty() || output.shape.size() != 2 || !output.shape[1].name.empty()) return;
  if (output.shape[1].size == static_cast<int64_t>(labels.size())) return;
  throw Failure("InvalidArguments", std::to_string(labels.size()) + " labels for the " + std::to_string(output.shape[1].size) + " classes of output '" +
                                        output.name + "': give one per class");
}

Tensor zeros(const TensorSpec& spec) {
  Shape shape;
  for (const Dim& dim : spec.shape) shape.push_back(dim.name.empty() ? dim.size : 1);
  const size_t bytes = bytes_of(spec.dtype, shape).value_or(0);
  auto memory = allocate(bytes);
  std::fill_n(memory.get(), bytes, std::byte{0});
  const std::byte* data = memory.get();
  return {spec.dtype, std::move(shape), data, bytes, std::move(memory)};
}

// Golden inputs in the signature's order and types; the pipeline records them in these, so another type is damage.
std::vector<Tensor> golden_inputs(const Artifact& artifact) {
  const auto arrays = read_npz(artifact.directory / artifact.golden->inputs);
  std::vector<Tensor> inputs;
  for (const TensorSpec& spec : artifact.inputs) {
    const auto found = arrays.find(spec.name);
    if (found == arrays.end()) throw Failure("ArtifactCorrupt", "the golden inputs lack '" + spec.name + "'");
    Tensor tensor = found->second;
    if (tensor.dtype != spec.dtype) {
      if (spec.dtype != DType::BFloat16 || tensor.dtype != DType::Float32)
        throw Failure("ArtifactCorrupt", "golden input '" + spec.name + "' is " + std::string(info(tensor.dtype).name) + ", the signature has " + std::string(info(spec.dtype).name));
      auto memory = allocate(tensor.count() * 2);  // numpy has no bfloat16: recorded as float32
      for (size_t i = 0; i < tensor.count(); ++i) reinterpret_cast<uint16_t*>(memory.get())[i] = float_to_bfloat(tensor.as<float>()[i]);
      const std::byte* data = memory.get();
      tensor = {DType::BFloat16, tensor.shape, data, tensor.count() * 2, std::move(memory)};
    }
    inputs.push_back(std::move(tensor));
  }
  return inputs;
}

// Splits along the first dimension into what the signature takes: a fixed batch comes in pieces of its size.
std::vector<std::vector<Tensor>> pieces(const std::vector<Tensor>& inputs, const std::vector<TensorSpec>& specs, int64_t limit) {
  int64_t size = limit;
  for (const TensorSpec& spec : specs)
    if (!spec.shape.empty() && spec.shape[0].name.empty()) size = spec.shape[0].size;
  const bool rows = std::all_of(inputs.begin(), inputs.end(), [&](const Tensor& t) { return !t.shape.empty() && t.shape[0] == inputs[0].shape[0]; });
  if (size <= 0 || !rows || inputs[0].shape[0] % size != 0 || inputs[0].shape[0] == 0) return {inputs};
  std::vector<std::vector<Tensor>> parts;
  for (int64_t from = 0; from < inputs[0].shape[0]; from += size) {
    parts.emplace_back();
    for (const Tensor& input : inputs) parts.back().push_back(rows_of(input, from, size));
  }
  return parts;
}

double timed(Backend& backend, const std::vector<Tensor>& inputs) {
  const auto from = Clock::now();
  try {
    backend.infer(inputs);
  } catch (const std::exception& error) {
    throw Failure("ModelLoadFailed", ("the first call of the model failed: " + std::string(error.what())).substr(0, 1500));
  }
  return seconds_since(from);
}

// Runs `inputs` until it is warm; the median seconds of the later half.
double warm_up(Backend& backend, const std::vector<Tensor>& inputs) {
  std::vector<double> seconds;
  const auto from = Clock::now();
  while (static_cast<int>(seconds.size()) < kWarmUpRuns && seconds_since(from) < kWarmUpSeconds) seconds.push_back(timed(backend, inputs));
  std::vector<double> later(seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2), seconds.end());
  std::nth_element(later.begin(), later.begin() + static_cast<std::ptrdiff_t>(later.size() / 2), later.end());
  return later[later.size() / 2];
}

std::vector<Tensor> repeated(const std::vector<Tensor>& sample, int64_t rows) {
  std::vector<Tensor> batch;
  for (const Tensor& tensor : sample) batch.push_back(concatenate(std::vector<const Tensor*>(static_cast<size_t>(rows), &tensor)));
  return batch;
}

// Equal infinities and NaNs at the same places are equal; any other value that is not finite is an infinite difference.
double difference(double got, double wanted) {
  if (got == wanted || (std::isnan(got) && std::isnan(wanted))) return 0;
  const double apart = std::abs(got - wanted);
  return std::isfinite(apart) ? apart : std::numeric_limits<double>::infinity();
}

// Throws Failure GoldenMismatch. `wanted` is null where nothing was recorded.
void compare(const TensorSpec& spec, const Tensor& got, const Tensor* wanted, double limit) {
  if (!wanted || wanted->shape != got.shape)
    throw Failure("GoldenMismatch", "golden output '" + spec.name + "': expected shape " + (wanted ? list_of(wanted->shape) : "none") + ", got " + list_of(got.shape));
  double worst = 0;
  for (size_t i = 0; i < got.count(); ++i) worst = std::max(worst, difference(value_at(got, i), value_at(*wanted, i)));
  if (worst <= limit) return;
  char text[128];
  std::snprintf(text, sizeof text, "' differs by %.3g on this node; at most %.3g is allowed", worst, limit);
  throw Failure("GoldenMismatch", "golden output '" + spec.name + text);
}

// Compares all of the golden outputs. Returns the golden data of one request: all of them, or the first piece where the signature fixes its size.
GoldenBatch proven_golden(Backend& backend, const Artifact& artifact, const std::vector<Tensor>& inputs) {
  const auto wanted = read_npz(artifact.directory / artifact.golden->outputs);
  const auto asked = pieces(inputs, artifact.inputs, 0);
  std::vector<std::vector<Tensor>> parts;
  try {
    for (const auto& piece : asked) parts.push_back(backend.infer(piece));
  } catch (const std::exception& error) {
    throw Failure("GoldenMismatch", ("the model failed on the golden inputs: " + std::string(error.what())).substr(0, 1500));
  }
  GoldenBatch golden{asked[0], {}, artifact.golden->max_absolute_error};
  for (size_t i = 0; i < artifact.outputs.size(); ++i) {
    std::vector<const Tensor*> column;
    for (const auto& part : parts) column.push_back(&part[i]);
    const auto found = wanted.find(artifact.outputs[i].name);
    compare(artifact.outputs[i], column.size() > 1 ? concatenate(column) : *column[0], found == wanted.end() ? nullptr : &found->second, golden.limit);
    golden.outputs.push_back(column.size() > 1 ? rows_of(found->second, 0, column[0]->shape[0]) : found->second);
  }
  return golden;
}

}  // namespace

std::unique_ptr<Model> load_model(Artifact artifact, int threads, int lanes, int64_t max_batch, const std::vector<std::string>* labels) {
  const auto from = Clock::now();
  auto model = std::make_unique<Model>();
  model->labels = labels ? *labels : artifact.labels;
  check_labels(model->labels, artifact.outputs[0]);
  model->backend = load_backend(artifact, threads, lanes);
  std::vector<Tensor> golden, sample;
  if (artifact.golden) golden = golden_inputs(artifact), sample = pieces(golden, artifact.inputs, 1)[0];
  else
    for (const TensorSpec& spec : artifact.inputs) sample.push_back(zeros(spec));
  if (warm_up(*model->backend, sample) < kInlineSeconds)
    for (const Tensor& tensor : sample) model->inline_elements += tensor.count();
  model->batched = max_batch > 1 && is_batched(artifact.inputs, artifact.outputs);
  if (model->batched) warm_up(*model->backend, repeated(sample, max_batch));
  if (artifact.golden) model->golden = proven_golden(*model->backend, artifact, golden);
  model->artifact = std::move(artifact);
  model->load_seconds = seconds_since(from);
  return model;
}

std::optional<std::string> golden_difference(const Model& model, const std::vector<Tensor>& got) {
  try {
    for (size_t i = 0; i < got.size(); ++i) compare(model.artifact.outputs[i], got[i], &model.golden->outputs[i], model.golden->limit);
  } catch (const Failure& failure) {
    return failure.what();
  }
  return std::nullopt;
}

}  // namespace slipway
