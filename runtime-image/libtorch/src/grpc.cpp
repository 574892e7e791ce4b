#include "grpc.hpp"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <thread>

#include "failure.hpp"
#include "open_inference.grpc.pb.h"
#include "protocol.hpp"

namespace slipway {

namespace {

using grpc::CallbackServerContext;
using grpc::ServerUnaryReactor;
using grpc::Status;
using grpc::StatusCode;
using InferInput = inference::ModelInferRequest::InferInputTensor;
using Contents = inference::InferTensorContents;

Status status_of(const HttpError& error) {
  const StatusCode code = error.status == 404   ? StatusCode::NOT_FOUND
                          : error.status == 429 ? StatusCode::RESOURCE_EXHAUSTED
                          : error.status == 499 ? StatusCode::CANCELLED
                          : error.status == 503 ? StatusCode::UNAVAILABLE
                          : error.status >= 500 ? StatusCode::INTERNAL
                                                : StatusCode::INVALID_ARGUMENT;
  return {code, error.what()};
}

// --- request -> tensors ----------------------------------------------------------------------------------------------------------------

// Typed contents, narrowed where protobuf has no type as small as the tensor's.
template <typename T, typename Values>
Tensor narrowed(const std::string& name, DType dtype, Shape shape, const Values& values, size_t bytes) {
  if (static_cast<size_t>(values.size()) * sizeof(T) != bytes)
    throw BadRequest("input '" + name + "': shape " + list_of(shape) + " needs " + std::to_string(bytes / sizeof(T)) + " values, got " + std::to_string(values.size()));
  auto memory = allocate(bytes);
  auto* out = reinterpret_cast<T*>(memory.get());
  for (int i = 0; i < values.size(); ++i) {
    if constexpr (std::is_integral_v<T> && !std::is_same_v<std::decay_t<decltype(values.Get(i))>, bool>)
      if (!std::in_range<T>(values.Get(i))) throw BadRequest("input '" + name + "': a value does not fit " + std::string(info(dtype).name));
    out[i] = static_cast<T>(values.Get(i));
  }
  const std::byte* data = memory.get();
  return {dtype, std::move(shape), data, bytes, std::move(memory)};
}

Tensor from_contents(const InferInput& input, DType dtype, Shape shape, size_t bytes) {
  const Contents& contents = input.contents();
  const std::string& name = input.name();
  switch (dtype) {
    case DType::Bool: return narrowed<uint8_t>(name, dtype, std::move(shape), contents.bool_contents(), bytes);
    case DType::UInt8: return narrowed<uint8_t>(name, dtype, std::move(shape), contents.uint_contents(), bytes);
    case DType::UInt16: return narrowed<uint16_t>(name, dtype, std::move(shape), contents.uint_contents(), bytes);
    case DType::UInt32: return narrowed<uint32_t>(name, dtype, std::move(shape), contents.uint_contents(), bytes);
    case DType::UInt64: return narrowed<uint64_t>(name, dtype, std::move(shape), contents.uint64_contents(), bytes);
    case DType::Int8: return narrowed<int8_t>(name, dtype, std::move(shape), contents.int_contents(), bytes);
    case DType::Int16: return narrowed<int16_t>(name, dtype, std::move(shape), contents.int_contents(), bytes);
    case DType::Int32: return narrowed<int32_t>(name, dtype, std::move(shape), contents.int_contents(), bytes);
    case DType::Int64: return narrowed<int64_t>(name, dtype, std::move(shape), contents.int64_contents(), bytes);
    case DType::Float32: return narrowed<float>(name, dtype, std::move(shape), contents.fp32_contents(), bytes);
    case DType::Float64: return narrowed<double>(name, dtype, std::move(shape), contents.fp64_contents(), bytes);
    default: throw BadRequest("input '" + name + "': " + std::string(info(dtype).wire) + " has no typed contents; send raw_input_contents");
  }
}

Tensor from_raw(const InferInput& input, DType dtype, Shape shape, size_t bytes, const std::string& raw, const std::shared_ptr<const void>& owner) {
  if (raw.size() != bytes)
    throw BadRequest("input '" + input.name() + "': shape " + list_of(shape) + " needs " + std::to_string(bytes) + " bytes, raw_input_contents has " + std::to_string(raw.size()));
  if (dtype == DType::Bool && std::any_of(raw.begin(), raw.end(), [](char c) { return c != 0 && c != 1; }))
    throw BadRequest("input '" + input.name() + "': a BOOL is one byte, 0 or 1");
  return tensor_on(dtype, std::move(shape), raw.data(), raw.size(), owner);
}

Tensor decoded(const inference::ModelInferRequest& request, int index, const TensorSpec& spec, const std::shared_ptr<const void>& owner) {
  const InferInput& input = request.inputs(index);
  if (input.datatype() != info(spec.dtype).wire)
    throw BadRequest("input '" + spec.name + "': expected datatype " + std::string(info(spec.dtype).wire) + ", got '" + input.datatype().substr(0, 40) + "'");
  Shape shape(input.shape().begin(), input.shape().end());
  const auto bytes = bytes_of(spec.dtype, shape);
  if (!bytes) throw BadRequest("input '" + spec.name + "': the shape " + list_of(shape) + " is impossible");
  if (request.raw_input_contents_size() == 0) return from_contents(input, spec.dtype, std::move(shape), *bytes);
  return from_raw(input, spec.dtype, std::move(shape), *bytes, request.raw_input_contents(index), owner);
}

// Tensors in the order of the signature; `owner` keeps the request, on which they are views.
std::vector<Tensor> decoded_inputs(const inference::ModelInferRequest& request, const Artifact& artifact, const std::shared_ptr<const void>& owner) {
  if (request.raw_input_contents_size() != 0 && request.raw_input_contents_size() != request.inputs_size())
    throw BadRequest("raw_input_contents has " + std::to_string(request.raw_input_contents_size()) + " entries for " + std::to_string(request.inputs_size()) + " inputs");
  std::vector<Tensor> inputs(artifact.inputs.size());
  std::vector<bool> given(inputs.size());
  for (int i = 0; i < request.inputs_size(); ++i) {
    const size_t index = index_of(artifact.inputs, request.inputs(i).name(), "input");
    if (given[index]) throw BadRequest("input '" + artifact.inputs[index].name + "' is given twice");
    given[index] = true;
    inputs[index] = decoded(request, i, artifact.inputs[index], owner);
  }
  for (size_t i = 0; i < given.size(); ++i)
    if (!given[i]) throw BadRequest("input '" + artifact.inputs[i].name + "' is missing; expected " + describe(artifact.inputs[i]));
  check_shapes(inputs, artifact.inputs);
  return inputs;
}

// --- tensors -> answer -----------------------------------------------------------------------------------------------------------------

void encode(const std::vector<Tensor>& outputs, const inference::ModelInferRequest& request, const Artifact& artifact, const AppOptions& options, inference::ModelInferResponse& response) {
  response.set_model_name(options.name);
  response.set_model_version(options.revision);
  response.set_id(request.id());
  std::vector<size_t> wanted;
  for (const auto& output : request.outputs()) wanted.push_back(index_of(artifact.outputs, output.name(), "output"));
  if (wanted.empty())
    for (size_t i = 0; i < outputs.size(); ++i) wanted.push_back(i);
  for (const size_t index : wanted) {
    auto* tensor = response.add_outputs();
    tensor->set_name(artifact.outputs[index].name);
    tensor->set_datatype(std::string(info(outputs[index].dtype).wire));
    tensor->mutable_shape()->Add(outputs[index].shape.begin(), outputs[index].shape.end());
    response.add_raw_output_contents(outputs[index].data, outputs[index].bytes);
  }
}

void describe_specs(const std::vector<TensorSpec>& specs, google::protobuf::RepeatedPtrField<inference::ModelMetadataResponse::TensorMetadata>* out) {
  for (const TensorSpec& spec : specs) {
    auto* tensor = out->Add();
    tensor->set_name(spec.name);
    tensor->set_datatype(std::string(info(spec.dtype).wire));
    for (const Dim& dim : spec.shape) tensor->add_shape(dim.name.empty() ? dim.size : -1);
  }
}

// --- calls -----------------------------------------------------------------------------------------------------------------------------

// One inference of either kind of call: checks, hands over, counts. `done` comes once, in any thread. The request must live until then.
void infer(App& app, const inference::ModelInferRequest& request, std::function<bool()> wanted, inference::ModelInferResponse* response, std::function<void(Status)> done) {
  const auto from = Clock::now();
  ++app.metrics().inflight;
  const auto finish = [&app, from, done = std::move(done)](int code, const Status& status) {
    --app.metrics().inflight;
    app.metrics().users.add(code, std::chrono::duration<double>(Clock::now() - from).count());
    done(status);
  };
  try {
    const AppOptions& options = app.options();
    if (request.model_name() != options.name || (!request.model_version().empty() && request.model_version() != options.revision))
      throw HttpError(404, "this server has only model '" + options.name + "', version '" + options.revision + "'");
    const auto model = app.model();
    const std::shared_ptr<const void> owner(&request, [](const void*) {});  // gRPC owns it, until `done`
    for (const auto& output : request.outputs()) index_of(model->artifact.outputs, output.name(), "output");
    app.infer(*model, decoded_inputs(request, model->artifact, owner), std::move(wanted), [&app, model, finish, &request, response](const Result& result) {
      if (const auto* error = std::get_if<HttpError>(&result)) return finish(error->status, status_of(*error));
      encode(std::get<std::vector<Tensor>>(result), request, model->artifact, app.options(), *response);
      finish(200, Status::OK);
    });
  } catch (const HttpError& error) {
    finish(error.status, status_of(error));
  } catch (const std::exception& error) {
    finish(500, {StatusCode::INTERNAL, error.what()});
  }
}

// A stream: each request is answered before the next is read, so answers keep the order; a failed one is an error message, not the end.
class Stream final : public grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse> {
 public:
  Stream(App& app, CallbackServerContext& context) : app_(app), context_(context) { StartRead(&request_); }

  void OnReadDone(bool ok) override {
    if (!ok) return Finish(Status::OK);
    response_.Clear();
    infer(app_, request_, [this] { return !context_.IsCancelled(); }, response_.mutable_infer_response(), [this](const Status& status) {
      if (!status.ok()) {
        response_.Clear();
        response_.set_error_message(status.error_message());
        response_.mutable_infer_response()->set_id(request_.id());
      }
      StartWrite(&response_);
    });
  }
  void OnWriteDone(bool ok) override {
    if (!ok) return Finish({StatusCode::CANCELLED, "the client has left"});
    request_.Clear();
    StartRead(&request_);
  }
  void OnDone() override { delete this; }

 private:
  App& app_;
  CallbackServerContext& context_;
  inference::ModelInferRequest request_;
  inference::ModelStreamInferResponse response_;
};

class Service final : public inference::GRPCInferenceService::CallbackService {
 public:
  explicit Service(App& app) : app_(app) {}

  ServerUnaryReactor* ServerLive(CallbackServerContext* context, const inference::ServerLiveRequest*, inference::ServerLiveResponse* response) override {
    response->set_live(app_.is_live());
    return finished(context);
  }

  ServerUnaryReactor* ServerReady(CallbackServerContext* context, const inference::ServerReadyRequest*, inference::ServerReadyResponse* response) override {
    response->set_ready(app_.phase() == Phase::Ready);
    return finished(context);
  }

  ServerUnaryReactor* ModelReady(CallbackServerContext* context, const inference::ModelReadyRequest* request, inference::ModelReadyResponse* response) override {
    if (!is_served(request->name(), request->version())) return unknown(context);
    response->set_ready(app_.phase() == Phase::Ready);
    return finished(context);
  }

  ServerUnaryReactor* ServerMetadata(CallbackServerContext* context, const inference::ServerMetadataRequest*, inference::ServerMetadataResponse* response) override {
    response->set_name("slipway-libtorch");
    response->set_version(torch_version());
    return finished(context);
  }

  ServerUnaryReactor* ModelMetadata(CallbackServerContext* context, const inference::ModelMetadataRequest* request, inference::ModelMetadataResponse* response) override {
    if (!is_served(request->name(), request->version())) return unknown(context);
    if (!app_.has_model()) return finished(context, {StatusCode::UNAVAILABLE, "the model is still loading"});
    const auto model = app_.model();
    response->set_name(app_.options().name);
    response->add_versions(app_.options().revision);
    response->set_platform(model->backend->platform());
    describe_specs(model->artifact.inputs, response->mutable_inputs());
    describe_specs(model->artifact.outputs, response->mutable_outputs());
    return finished(context);
  }

  ServerUnaryReactor* ModelInfer(CallbackServerContext* context, const inference::ModelInferRequest* request, inference::ModelInferResponse* response) override {
    ServerUnaryReactor* reactor = context->DefaultReactor();
    infer(app_, *request, [context] { return !context->IsCancelled(); }, response, [reactor](const Status& status) { reactor->Finish(status); });
    return reactor;
  }

  grpc::ServerBidiReactor<inference::ModelInferRequest, inference::ModelStreamInferResponse>* ModelStreamInfer(CallbackServerContext* context) override { return new Stream(app_, *context); }

 private:
  static ServerUnaryReactor* finished(CallbackServerContext* context, const Status& status = Status::OK) {
    ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(status);
    return reactor;
  }
  ServerUnaryReactor* unknown(CallbackServerContext* context) const {
    return finished(context, {StatusCode::NOT_FOUND, "this server has only model '" + app_.options().name + "', version '" + app_.options().revision + "'"});
  }
  bool is_served(const std::string& name, const std::string& version) const { return name == app_.options().name && (version.empty() || version == app_.options().revision); }

  App& app_;
};

class Running final : public GrpcServer {
 public:
  Running(App& app, const std::string& host, uint16_t port, size_t max_message_bytes) : service_(app) {
    grpc::ServerBuilder builder;
    const std::string address = (host.empty() ? std::string("[::]") : host.find(':') != std::string::npos ? "[" + host + "]" : host) + ":" + std::to_string(port);
    builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &bound_);
    builder.RegisterService(&service_);
    builder.SetMaxReceiveMessageSize(static_cast<int>(std::min<size_t>(max_message_bytes, INT32_MAX)));
    builder.SetMaxSendMessageSize(-1);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // a port that is taken is an error, not shared
    server_ = builder.BuildAndStart();
    if (!server_ || bound_ == 0) throw Failure("InvalidArguments", "cannot listen on " + address + " for gRPC");
  }

  ~Running() override { stop(); }

  void drain(std::chrono::steady_clock::time_point deadline) override {
    if (draining_.joinable()) return;
    const auto until = std::chrono::system_clock::now() + std::chrono::duration_cast<std::chrono::system_clock::duration>(deadline - std::chrono::steady_clock::now());
    draining_ = std::thread([this, until] { server_->Shutdown(until); });
  }

  void stop() override {
    if (stopped_) return;
    stopped_ = true;
    if (draining_.joinable()) draining_.join();
    else server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    server_->Wait();
  }

 private:
  Service service_;
  int bound_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::thread draining_;
  bool stopped_ = false;
};

}  // namespace

std::unique_ptr<GrpcServer> start_grpc(App& app, const std::string& host, uint16_t port, size_t max_message_bytes) {
  return std::make_unique<Running>(app, host, port, max_message_bytes);
}

}  // namespace slipway
