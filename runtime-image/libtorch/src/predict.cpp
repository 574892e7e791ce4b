#include "predict.hpp"

#include <algorithm>
#include <cmath>

#include "json.hpp"
#include "protocol.hpp"
#include "reader.hpp"

namespace slipway {

namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

const TensorSpec& only(const std::vector<TensorSpec>& specs) {
  if (specs.size() == 1) return specs[0];
  std::string names;
  for (const TensorSpec& spec : specs) names += (names.empty() ? "'" : ", '") + spec.name + "': " + describe(spec);
  throw BadRequest("this model has several inputs; name them: " + names);
}

Tensor batched(Tensor tensor, const TensorSpec& spec) {
  if (tensor.shape.size() + 1 == spec.shape.size() && !spec.shape[0].name.empty()) tensor.shape.insert(tensor.shape.begin(), 1);
  return tensor;
}

// Samples that are objects: the tensor of one input from all of them.
Tensor column(const array& instances, const TensorSpec& spec) {
  std::vector<Tensor> rows;
  for (const element instance : instances) {
    element value;
    if (!instance.is_object() || instance[spec.name].get(value) != simdjson::SUCCESS || object(instance.get_object()).size() != object(instances.at(0).get_object()).size())
      throw BadRequest("all instances must have the same inputs; expected '" + spec.name + "' in each");
    rows.push_back(tensor_of(spec.name, value, spec.dtype));
    rows.back().shape.insert(rows.back().shape.begin(), 1);
    if (rows.back().shape != rows[0].shape) throw BadRequest("input '" + spec.name + "': the instances have different shapes");
  }
  std::vector<const Tensor*> parts;
  for (const Tensor& row : rows) parts.push_back(&row);
  return concatenate(parts);
}

std::vector<Tensor> from_instances(element value, const Artifact& artifact) {
  array instances;
  if (value.get(instances) != simdjson::SUCCESS || instances.size() == 0) throw BadRequest("'instances' must be a list of at least one sample");
  if (!instances.at(0).is_object()) {
    const TensorSpec& spec = only(artifact.inputs);
    return {tensor_of(spec.name, value, spec.dtype)};
  }
  for (const auto& [key, field] : object(instances.at(0).get_object())) index_of(artifact.inputs, key, "input");
  std::vector<Tensor> inputs;
  for (const TensorSpec& spec : artifact.inputs) inputs.push_back(column(instances, spec));
  return inputs;
}

std::vector<Tensor> from_inputs(element value, const Artifact& artifact) {
  if (!value.is_object()) {
    const TensorSpec& spec = only(artifact.inputs);
    return {batched(tensor_of(spec.name, value, spec.dtype), spec)};
  }
  for (const auto& [key, field] : object(value.get_object())) index_of(artifact.inputs, key, "input");
  std::vector<Tensor> inputs;
  for (const TensorSpec& spec : artifact.inputs) {
    element data;
    if (value[spec.name].get(data) != simdjson::SUCCESS) throw BadRequest("input '" + spec.name + "' is missing; expected " + describe(spec));
    inputs.push_back(batched(tensor_of(spec.name, data, spec.dtype), spec));
  }
  return inputs;
}

bool is_class_like(const Tensor& tensor) { return tensor.shape.size() == 2 && tensor.shape[1] >= 2 && info(tensor.dtype).kind == 'f'; }

// Softmax of every row; scores that are probabilities already are left as they are.
std::vector<double> probabilities(const Tensor& scores, const std::string& name) {
  std::vector<double> values(scores.count());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = value_at(scores, i);
    if (!std::isfinite(values[i])) throw HttpError(500, "output '" + name + "' has NaN or infinite values, so there is no prediction");
  }
  const auto classes = static_cast<std::ptrdiff_t>(scores.shape[1]);
  bool already = true;
  for (auto row = values.begin(); row != values.end(); row += classes) {
    double sum = 0;
    for (auto value = row; value != row + classes; ++value) already = already && *value >= 0, sum += *value;
    already = already && std::abs(sum - 1) <= 1e-3;
  }
  if (already) return values;
  for (auto row = values.begin(); row != values.end(); row += classes) {
    const double largest = *std::max_element(row, row + classes);
    double sum = 0;
    for (auto value = row; value != row + classes; ++value) sum += *value = std::exp(*value - largest);
    for (auto value = row; value != row + classes; ++value) *value /= sum;
  }
  return values;
}

std::string row_text(const double* row, size_t classes, const std::vector<std::string>& labels) {
  const auto best = static_cast<size_t>(std::max_element(row, row + classes) - row);
  std::string text = "\"prediction\":" + std::to_string(best);
  if (best < labels.size()) text += ",\"label\":" + json::quoted(labels[best]);
  text += ",\"probability\":";
  json::append_number(text, std::round(row[best] * 1e6) / 1e6);
  return text;
}

// Appends nested lists; `data` is the flat text of the numbers, cut at its commas.
void append_nested(std::string& out, const Shape& shape, size_t depth, std::string_view& data) {
  if (depth == shape.size()) {
    const size_t comma = data.find(',');
    out += data.substr(0, comma);
    data.remove_prefix(comma == std::string_view::npos ? data.size() : comma + 1);
    return;
  }
  out += '[';
  for (int64_t i = 0; i < shape[depth]; ++i) {
    if (i) out += ',';
    append_nested(out, shape, depth + 1, data);
  }
  out += ']';
}

}  // namespace

std::vector<Tensor> decode_plain(const Request& request, const Artifact& artifact) {
  std::optional<element> instances, named;
  for (const auto& [key, value] : json_object(*request.body, request.body->size())) {
    if (key == "instances") instances = value;
    else if (key == "inputs") named = value;
  }
  if (!instances && !named) throw BadRequest("expected {\"instances\": [...]} or {\"inputs\": ...}, or an image upload");
  std::vector<Tensor> inputs = instances ? from_instances(*instances, artifact) : from_inputs(*named, artifact);
  check_shapes(inputs, artifact.inputs);
  return inputs;
}

std::string predicted(const std::vector<Tensor>& outputs, const Artifact& artifact, const std::vector<std::string>& labels, bool as_list, const std::string& model,
                      const std::string& revision) {
  std::string out = "{";
  const Tensor& scores = outputs[0];
  if (!is_class_like(scores)) {
    out += "\"outputs\":{";
    for (size_t i = 0; i < outputs.size(); ++i) {
      std::string flat;
      append_data(flat, outputs[i]);
      std::string_view data(flat.data() + 1, flat.size() - 2);
      out += (i ? "," : "") + json::quoted(artifact.outputs[i].name) + ":";
      append_nested(out, outputs[i].shape, 0, data);
    }
    out += "}";
  } else {
    const auto values = probabilities(scores, artifact.outputs[0].name);
    const auto classes = static_cast<size_t>(scores.shape[1]);
    const auto rows = static_cast<size_t>(scores.shape[0]);
    if (rows == 1) out += row_text(values.data(), classes, labels);
    if (as_list || rows != 1) {
      out += rows == 1 ? ",\"predictions\":[" : "\"predictions\":[";
      for (size_t i = 0; i < rows; ++i) out += (i ? ",{" : "{") + row_text(values.data() + i * classes, classes, labels) + "}";
      out += "]";
    }
  }
  return out + ",\"model\":" + json::quoted(model) + ",\"revision\":" + json::quoted(revision) + "}";
}

}  // namespace slipway
