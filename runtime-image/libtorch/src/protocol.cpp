#include "protocol.hpp"

#include <algorithm>
#include <charconv>

#include "json.hpp"
#include "reader.hpp"

namespace slipway {

namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

// What an input of the request says, in whatever order its keys came.
struct Item {
  std::string_view name, datatype;
  std::optional<element> shape, data;
  std::optional<uint64_t> binary_size;
};

std::string_view text_or_empty(element value) { return value.is_string() ? std::string_view(value) : std::string_view(); }

std::optional<bool> flag(element parameters, std::string_view key) {
  bool value = false;
  if (!parameters.is_object() || parameters[key].get(value) != simdjson::SUCCESS) return std::nullopt;
  return value;
}

Item item_of(element value) {
  object fields;
  if (value.get(fields) != simdjson::SUCCESS) throw BadRequest("each input must be an object with a 'name'");
  Item item;
  for (const auto& [key, field] : fields) {
    if (key == "name") item.name = text_or_empty(field);
    else if (key == "datatype") item.datatype = text_or_empty(field);
    else if (key == "shape") item.shape = field;
    else if (key == "data") item.data = field;
    else if (key == "parameters" && field.is_object()) {
      uint64_t size = 0;
      if (field["binary_data_size"].get(size) == simdjson::SUCCESS) item.binary_size = size;
    }
  }
  if (item.name.empty()) throw BadRequest("each input must be an object with a 'name'");
  return item;
}

// The raw part of the body behind its JSON: binary tensors lie there in the order of the inputs.
struct Raw {
  std::shared_ptr<std::string> body;
  size_t at = 0;

  Tensor tensor(const std::string& name, DType dtype, Shape shape, uint64_t size) {
    const auto wanted = bytes_of(dtype, shape);
    if (!wanted || *wanted != size)
      throw BadRequest("input '" + name + "': shape " + list_of(shape) + " needs " + (wanted ? std::to_string(*wanted) : "too many") + " bytes, binary_data_size is " + std::to_string(size));
    if (size > body->size() - at) throw BadRequest("input '" + name + "': the body ends before its binary_data_size of " + std::to_string(size) + " bytes");
    const char* data = body->data() + at;
    at += size;
    if (dtype == DType::Bool && std::any_of(data, data + size, [](char c) { return c != 0 && c != 1; }))
      throw BadRequest("input '" + name + "': a BOOL is one byte, 0 or 1");
    return tensor_on(dtype, std::move(shape), data, size, body);
  }
};

Tensor decoded(const Item& item, const TensorSpec& spec, Raw& raw) {
  if (item.datatype != info(spec.dtype).wire)
    throw BadRequest("input '" + spec.name + "': expected datatype " + std::string(info(spec.dtype).wire) + ", got '" + std::string(item.datatype.substr(0, 40)) + "'");
  if (item.binary_size) {
    if (!item.shape) throw BadRequest("input '" + spec.name + "': 'shape' is missing");
    return raw.tensor(spec.name, spec.dtype, shape_of(spec.name, *item.shape), *item.binary_size);
  }
  if (!item.data) throw BadRequest("input '" + spec.name + "': 'data' is missing, and so is the parameter 'binary_data_size'");
  if (!item.shape) throw BadRequest("input '" + spec.name + "': 'shape' is missing");
  return reshaped(spec.name, tensor_of(spec.name, *item.data, spec.dtype), *item.shape);
}

std::vector<Tensor> decoded_inputs(element listed, const Artifact& artifact, Raw& raw) {
  std::vector<Tensor> inputs(artifact.inputs.size());
  std::vector<bool> given(artifact.inputs.size());
  for (const element value : array(listed.get_array())) {
    const Item item = item_of(value);
    const size_t index = index_of(artifact.inputs, item.name, "input");
    if (given[index]) throw BadRequest("input '" + artifact.inputs[index].name + "' is given twice");
    given[index] = true;
    inputs[index] = decoded(item, artifact.inputs[index], raw);
  }
  for (size_t i = 0; i < given.size(); ++i)
    if (!given[i]) throw BadRequest("input '" + artifact.inputs[i].name + "' is missing; expected " + describe(artifact.inputs[i]));
  if (raw.at != raw.body->size()) throw BadRequest(std::to_string(raw.body->size() - raw.at) + " bytes follow the last tensor");
  check_shapes(inputs, artifact.inputs);
  return inputs;
}

std::vector<WantedOutput> wanted_outputs(std::optional<element> listed, const Artifact& artifact, bool binary) {
  std::vector<WantedOutput> wanted;
  if (listed && !listed->is_null()) {
    array list;
    if (listed->get(list) != simdjson::SUCCESS) throw BadRequest("'outputs' must be a list of objects with a 'name'");
    for (const element value : list) {
      std::string_view name;
      if (!value.is_object() || value["name"].get(name) != simdjson::SUCCESS) throw BadRequest("'outputs' must be a list of objects with a 'name'");
      element parameters;
      const bool has = value["parameters"].get(parameters) == simdjson::SUCCESS;
      if (has && parameters.is_object() && parameters["classification"].error() == simdjson::SUCCESS)
        throw BadRequest("output '" + std::string(name) + "': the classification extension is not supported; ask /predict");
      wanted.push_back({index_of(artifact.outputs, name, "output"), (has ? flag(parameters, "binary_data") : std::nullopt).value_or(binary)});
    }
  }
  if (wanted.empty())
    for (size_t i = 0; i < artifact.outputs.size(); ++i) wanted.push_back({i, binary});
  return wanted;
}

// Bytes of JSON in the body: all of it, or what Inference-Header-Content-Length says.
size_t json_length(const Request& request) {
  if (!request.header_length) return request.body->size();
  size_t length = 0;
  const std::string& text = *request.header_length;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), length);
  if (error != std::errc() || end != text.data() + text.size() || length > request.body->size())
    throw BadRequest("Inference-Header-Content-Length must be a number of at most " + std::to_string(request.body->size()) + ", the length of the body");
  return length;
}

template <typename T>
void append_numbers(std::string& out, const Tensor& tensor) {
  const T* values = tensor.as<T>();
  for (size_t i = 0; i < tensor.count(); ++i) {
    if (i) out += ',';
    json::append_number(out, values[i]);
  }
}

void append_halves(std::string& out, const Tensor& tensor, float (*convert)(uint16_t)) {
  for (size_t i = 0; i < tensor.count(); ++i) {
    if (i) out += ',';
    json::append_number(out, convert(tensor.as<uint16_t>()[i]));
  }
}

void append_shape(std::string& out, const Shape& shape) {
  out += '[';
  for (size_t i = 0; i < shape.size(); ++i) {
    if (i) out += ',';
    json::append_number(out, shape[i]);
  }
  out += ']';
}

void append_specs(std::string& out, const std::vector<TensorSpec>& specs) {
  out += '[';
  for (const TensorSpec& spec : specs) {
    if (out.back() != '[') out += ',';
    out += "{\"name\":" + json::quoted(spec.name) + ",\"datatype\":\"" + std::string(info(spec.dtype).wire) + "\",\"shape\":";
    Shape shape;
    for (const Dim& dim : spec.shape) shape.push_back(dim.name.empty() ? dim.size : -1);
    append_shape(out, shape);
    out += '}';
  }
  out += ']';
}

}  // namespace

size_t index_of(const std::vector<TensorSpec>& specs, std::string_view name, std::string_view what) {
  for (size_t i = 0; i < specs.size(); ++i)
    if (specs[i].name == name) return i;
  std::string known;
  for (const TensorSpec& spec : specs) known += (known.empty() ? "'" : ", '") + spec.name + "'";
  throw BadRequest("unknown " + std::string(what) + " '" + std::string(name.substr(0, 100)) + "'; expected " + known);
}

InferRequest decode_infer(Request& request, const Artifact& artifact) {
  const size_t length = json_length(request);
  std::optional<element> inputs, outputs;
  bool binary = false;
  InferRequest decoded;
  for (const auto& [key, value] : json_object(*request.body, length)) {
    if (key == "inputs") inputs = value;
    else if (key == "outputs") outputs = value;
    else if (key == "parameters") binary = flag(value, "binary_data_output").value_or(false);
    else if (key == "id" && !value.is_null()) {
      if (!value.is_string()) throw BadRequest("'id' must be a string");
      decoded.id = std::string(std::string_view(value));
    }
  }
  if (!inputs || !inputs->is_array() || array(inputs->get_array()).size() == 0)
    throw BadRequest("'inputs' must be a list of tensors, each with name, shape, datatype and data");
  Raw raw{request.body, length};
  decoded.inputs = decoded_inputs(*inputs, artifact, raw);
  decoded.outputs = wanted_outputs(outputs, artifact, binary);
  return decoded;
}

void append_data(std::string& out, const Tensor& tensor) {
  out += '[';
  switch (tensor.dtype) {
    case DType::Bool:
      for (size_t i = 0; i < tensor.count(); ++i) (out += i ? "," : "") += tensor.as<uint8_t>()[i] ? "true" : "false";
      break;
    case DType::UInt8: append_numbers<uint8_t>(out, tensor); break;
    case DType::UInt16: append_numbers<uint16_t>(out, tensor); break;
    case DType::UInt32: append_numbers<uint32_t>(out, tensor); break;
    case DType::UInt64: append_numbers<uint64_t>(out, tensor); break;
    case DType::Int8: append_numbers<int8_t>(out, tensor); break;
    case DType::Int16: append_numbers<int16_t>(out, tensor); break;
    case DType::Int32: append_numbers<int32_t>(out, tensor); break;
    case DType::Int64: append_numbers<int64_t>(out, tensor); break;
    case DType::Float16: append_halves(out, tensor, half_to_float); break;
    case DType::BFloat16: append_halves(out, tensor, bfloat_to_float); break;
    case DType::Float32: append_numbers<float>(out, tensor); break;
    case DType::Float64: append_numbers<double>(out, tensor); break;
  }
  out += ']';
}

Response encode_infer(const InferRequest& request, const std::vector<Tensor>& outputs, const Artifact& artifact, const std::string& model, const std::string& revision) {
  Response response;
  std::string& out = response.body;
  size_t room = 256, binary = 0;
  for (const WantedOutput& wanted : request.outputs) room += 96 + (wanted.binary ? 0 : outputs[wanted.index].count() * 12);
  for (const WantedOutput& wanted : request.outputs) binary += wanted.binary ? outputs[wanted.index].bytes : 0;
  out.reserve(room + binary);
  out += "{\"model_name\":" + json::quoted(model) + ",\"model_version\":" + json::quoted(revision);
  if (request.id) out += ",\"id\":" + json::quoted(*request.id);
  out += ",\"outputs\":[";
  for (const WantedOutput& wanted : request.outputs) {
    const Tensor& tensor = outputs[wanted.index];
    if (out.back() == '}') out += ',';
    out += "{\"name\":";
    json::append_string(out, artifact.outputs[wanted.index].name);
    out += ",\"datatype\":\"";
    (out += info(tensor.dtype).wire) += "\",\"shape\":";
    append_shape(out, tensor.shape);
    if (wanted.binary) {
      out += ",\"parameters\":{\"binary_data_size\":";
      json::append_number(out, tensor.bytes);
      out += "}}";
    } else {
      out += ",\"data\":";
      append_data(out, tensor);
      out += '}';
    }
  }
  out += "]}";
  if (std::none_of(request.outputs.begin(), request.outputs.end(), [](const WantedOutput& wanted) { return wanted.binary; })) return response;
  response.headers.emplace_back("Inference-Header-Content-Length", std::to_string(out.size()));
  response.content_type = "application/octet-stream";
  for (const WantedOutput& wanted : request.outputs)
    if (wanted.binary) out.append(outputs[wanted.index].as<char>(), outputs[wanted.index].bytes);
  return response;
}

std::string metadata(const Artifact& artifact, const std::string& model, const std::string& revision, const std::string& platform) {
  std::string out = "{\"name\":" + json::quoted(model) + ",\"versions\":[" + json::quoted(revision) + "],\"platform\":" + json::quoted(platform) + ",\"inputs\":";
  append_specs(out, artifact.inputs);
  out += ",\"outputs\":";
  append_specs(out, artifact.outputs);
  return out + "}";
}

}  // namespace slipway
