#include "app.hpp"

#include <algorithm>

#include "docs.hpp"
#include "failure.hpp"
#include "form.hpp"
#include "image.hpp"
#include "predict.hpp"
#include "protocol.hpp"

namespace slipway {

namespace {

constexpr auto kLongInline = std::chrono::milliseconds(50);  // not less: a busy node may keep any thread waiting for some

template <typename Table>
auto find(const Table& table, std::string_view path) {
  return std::find_if(table.begin(), table.end(), [&](const auto& row) { return row.first == path; });
}

int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

// %6d -> m, and without a slash at the end.
std::string normal(std::string_view path) {
  std::string out;
  for (size_t i = 0; i < path.size(); ++i) {
    const bool escaped = path[i] == '%' && i + 2 < path.size() && digit(path[i + 1]) >= 0 && digit(path[i + 2]) >= 0;
    out += escaped ? static_cast<char>(digit(path[i + 1]) * 16 + digit(path[i + 2])) : path[i];
    if (escaped) i += 2;
  }
  while (out.ends_with('/')) out.pop_back();
  return out;
}

// `work`'s answer; what it throws becomes one too.
template <typename Work>
Response answer_of(const Work& work) {
  try {
    return work();
  } catch (const HttpError& error) {
    return error_response(error);
  } catch (const std::exception& error) {
    log_line("ERROR", std::string("internal error: ") + error.what());
    return error_response(HttpError(500, std::string("internal error: ").append(error.what()).substr(0, 500)));
  }
}

}  // namespace

App::App(AppOptions options, Post post) : options_(std::move(options)), post_(std::move(post)), metrics_(options_.name, options_.revision), lanes_(options_.lanes, metrics_) {
  gets_ = {{"/v2/health/ready", &App::ready}, {"/v2/health/live", &App::live}, {"/metrics", &App::metrics_text},
           {"/v2", &App::server},             {"/docs", &App::docs},           {"/openapi.json", &App::openapi}};
  for (const std::string& base : {"/v2/models/" + options_.name, "/v2/models/" + options_.name + "/versions/" + options_.revision}) {
    gets_.insert(gets_.end(), {{base, &App::described}, {base + "/ready", &App::model_ready}});
    posts_.insert(posts_.end(), {{base + "/infer", &App::prepare_infer}, {base + "/predict", &App::prepare_predict}});
  }
  posts_.emplace_back("/predict", &App::prepare_predict);
}

void App::install(std::shared_ptr<const Model> model, std::function<void()> enter_thread) {
  metrics_.set_artifact(model->artifact.digest, model->artifact.format, model->artifact.precision, model->load_seconds);
  Backend* backend = model->backend.get();
  lanes_.start([backend](const std::vector<Tensor>& inputs) { return backend->infer(inputs); }, std::move(enter_thread));
  model_ = std::move(model);
  loaded_ = model_.get();
  Phase loading = Phase::Loading;
  phase_.compare_exchange_strong(loading, Phase::Ready);
}

std::shared_ptr<const Model> App::model() const {
  if (!has_model()) throw HttpError(503, "the model is still loading", 1);
  return model_;
}

// --- dispatch --------------------------------------------------------------------------------------------------------------------------

void App::handle(Request& request, const Responder& respond) {
  auto post = find(posts_, request.path);
  if (post == posts_.end() && (request.path.find('%') != std::string::npos || request.path.ends_with('/'))) {
    request.path = normal(request.path);
    post = find(posts_, request.path);
  }
  if (post != posts_.end() && request.method == "POST") ask(post->second, request, respond);
  else respond(answer_of([&] { return get(request); }));
}

Response App::get(const Request& request) const {
  const auto getter = find(gets_, request.path);
  const std::string path = request.path.substr(0, 200);
  if (getter == gets_.end() && find(posts_, request.path) == posts_.end()) {
    if (path.starts_with("/v2/models/")) throw HttpError(404, path + ": this server has only model '" + options_.name + "', version '" + options_.revision + "'");
    throw HttpError(404, "no such path: " + path + "; see /docs");
  }
  const bool is_get = request.method == "GET" || request.method == "HEAD";
  if (getter != gets_.end() && is_get) return (this->*getter->second)();
  Response refused = error_response(HttpError(405, path + " takes " + (getter == gets_.end() ? "POST" : "GET") + ", not " + request.method.substr(0, 40)));
  refused.headers.emplace_back("allow", getter == gets_.end() ? "POST" : "GET, HEAD");
  return refused;
}

void App::ask(Prepare prepare, Request& request, const Responder& respond) {
  const Asked asked{Clock::now(), request.probe != Probe::None, request.experiment, respond};
  ++metrics_.inflight;
  std::shared_ptr<const Model> loaded;
  Work work;
  try {
    loaded = model();
    work = (this->*prepare)(loaded, request);
  } catch (const HttpError& error) {
    return finish(error_response(error), asked);
  } catch (const std::exception& error) {
    return finish(answer_of([&]() -> Response { throw; }), asked);
  }
  run(loaded, std::move(work), asked);
}

void App::run(const std::shared_ptr<const Model>& loaded, Work work, const Asked& asked) {
  const auto answered = [answer = std::move(work.answer)](const Result& result) {
    return answer_of([&] {
      if (const auto* error = std::get_if<HttpError>(&result)) throw *error;
      return answer(std::get<std::vector<Tensor>>(result));
    });
  };
  if (!work.prepare && runs_inline(*loaded, work.inputs)) return finish(answered(run_inline(work.inputs, asked.is_probe)), asked);
  Job job;
  job.inputs = std::move(work.inputs);
  job.prepare = std::move(work.prepare);
  job.batched = loaded->batched && !job.prepare;
  job.is_probe = asked.is_probe;
  job.wanted = [gone = asked.respond.defer()] { return !gone->load(std::memory_order_relaxed); };
  job.skipped = [this] { --metrics_.inflight; };
  job.done = [this, answered, asked](const Result& result) {
    post_([this, asked, response = std::make_shared<Response>(answered(result))] { finish(std::move(*response), asked); });
  };
  try {
    lanes_.submit(std::move(job));
  } catch (const HttpError& error) {
    finish(error_response(error), asked);
  }
}

void App::finish(Response&& response, const Asked& asked) {
  --metrics_.inflight;
  const double seconds = std::chrono::duration<double>(Clock::now() - asked.from).count();
  metrics_.answers(asked.is_probe).add(response.status, seconds);
  if (!asked.is_probe && !asked.experiment.empty()) metrics_.add_to_experiment(asked.experiment, response.status, seconds);
  asked.respond(std::move(response));
}

// A model whose time depends on its input's values would block the loop; the first such call is the last one here.
Result App::run_inline(const std::vector<Tensor>& inputs, bool is_probe) {
  const auto from = Clock::now();
  Result result = lanes_.noted(lanes_.run_here(inputs), is_probe);
  if (Clock::now() - from > kLongInline && inline_.exchange(false)) log_line("WARNING", "a call on the event loop took more than 50 ms: all calls go to lanes from now on");
  return result;
}

void App::infer(const Model& loaded, std::vector<Tensor> inputs, std::function<bool()> wanted, std::function<void(Result)> done) {
  if (runs_inline(loaded, inputs)) return done(run_inline(inputs, /*is_probe=*/false));
  Job job;
  job.inputs = std::move(inputs);
  job.batched = loaded.batched;
  job.wanted = std::move(wanted);
  job.skipped = [done] { done(HttpError(499, "the client has left")); };
  job.done = done;
  lanes_.submit(std::move(job));
}

// --- model -----------------------------------------------------------------------------------------------------------------------------

App::Work App::prepare_infer(const std::shared_ptr<const Model>& loaded, Request& request) const {
  if (request.probe == Probe::Golden) return prepare_golden(loaded);
  auto asked = std::make_shared<InferRequest>(decode_infer(request, loaded->artifact));
  std::vector<Tensor> inputs = std::move(asked->inputs);
  return {std::move(inputs), nullptr, [this, loaded, asked](const std::vector<Tensor>& outputs) {
            return encode_infer(*asked, outputs, loaded->artifact, options_.name, options_.revision);
          }};
}

// Replays the golden inputs like the request of a user, and holds the answer against the golden outputs.
App::Work App::prepare_golden(const std::shared_ptr<const Model>& loaded) const {
  if (!loaded->golden) throw HttpError(501, "this artifact has no golden inputs to replay");
  return {loaded->golden->inputs, nullptr, [this, loaded](const std::vector<Tensor>& outputs) {
            if (const auto differs = golden_difference(*loaded, outputs)) throw HttpError(500, *differs);
            std::string body = "{\"model\":" + json::quoted(options_.name) + ",\"revision\":" + json::quoted(options_.revision) + ",\"golden\":true,\"maxAbsoluteError\":";
            json::append_number(body, loaded->golden->limit);
            return Response{200, body + "}", "application/json", {}};
          }};
}

App::Work App::prepare_predict(const std::shared_ptr<const Model>& loaded, Request& request) const {
  const bool upload = is_upload(request.content_type);
  const auto answer = [this, loaded, upload](const std::vector<Tensor>& outputs) {
    return Response{200, predicted(outputs, loaded->artifact, loaded->labels, !upload, options_.name, options_.revision), "application/json", {}};
  };
  if (!upload) return {decode_plain(request, loaded->artifact), nullptr, answer};
  if (!loaded->artifact.image) throw HttpError(415, "this model declares no image preprocessing (preprocessing.image in model.yaml); send JSON");
  auto files = uploaded_images(request);
  // Decoding a picture takes longer than most of what the loop does, so it is done in the lane.
  return {{}, [loaded, body = request.body, files = std::move(files)] { return image_inputs(files, *loaded->artifact.image, loaded->artifact.inputs[0]); }, answer};
}

// --- information -----------------------------------------------------------------------------------------------------------------------

Response App::server() const { return {200, R"({"name":"slipway-libtorch","version":)" + json::quoted(torch_version()) + R"(,"extensions":["binary_tensor_data"]})", "application/json", {}}; }

Response App::live() const {
  if (is_live()) return {200, R"({"live":true})", "application/json", {}};
  return {503, R"({"live":false,"reason":")" + why_not_live() + "\"}", "application/json", {}};
}

std::string App::why_not_live() const {
  return "a call of the model has been running for " + std::to_string(static_cast<int64_t>(lanes_.stuck_seconds())) + " s";
}

Response App::ready() const {
  if (phase_ == Phase::Ready) return {200, R"({"ready":true})", "application/json", {}};
  return {503, std::string(R"({"ready":false,"reason":")") + (phase_ == Phase::Loading ? "loading" : "draining") + "\"}", "application/json", {}};
}

Response App::model_ready() const {
  const bool is_ready = phase_ == Phase::Ready;
  return {is_ready ? 200 : 503, "{\"name\":" + json::quoted(options_.name) + ",\"ready\":" + (is_ready ? "true" : "false") + "}", "application/json", {}};
}

Response App::described() const {
  const auto loaded = model();
  return {200, metadata(loaded->artifact, options_.name, options_.revision, loaded->backend->platform()), "application/json", {}};
}

Response App::metrics_text() const { return {200, metrics_.render(), "text/plain; version=0.0.4; charset=utf-8", {}}; }
Response App::docs() const { return {200, docs_page(*model(), options_.name, options_.revision), "text/html; charset=utf-8", {}}; }
Response App::openapi() const { return {200, openapi_json(*model(), options_.name, options_.revision), "application/json", {}}; }

}  // namespace slipway
