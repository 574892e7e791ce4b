// Routes and handlers: which path answers what, in each phase of the server's life. No sockets here.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>

#include "connection.hpp"
#include "lanes.hpp"
#include "messages.hpp"
#include "metrics.hpp"
#include "model.hpp"

namespace slipway {

struct AppOptions {
  std::string name, revision = "unknown";
  double stuck_seconds = 60;  // a call that takes longer turns liveness 503
  LaneOptions lanes;
};

enum class Phase { Loading, Ready, Draining };

// Thread-safe where said; the rest belongs to the loop's thread.
class App {
 public:
  using Post = std::function<void(std::function<void()>)>;  // runs a task on the loop's thread, from any thread
  // Work that a request leads to: its inputs (or what makes them, in a lane), and what the outputs become.
  struct Work {
    std::vector<Tensor> inputs;
    std::function<std::vector<Tensor>()> prepare;
    std::function<Response(const std::vector<Tensor>&)> answer;
  };

  App(AppOptions options, Post post);

  void install(std::shared_ptr<const Model> model, std::function<void()> enter_thread);
  void set_draining() { phase_ = Phase::Draining; }
  bool close_lanes() { return lanes_.close(std::chrono::seconds(1)); }
  void handle(Request& request, const Responder& respond);

  // From any thread; gRPC asks by these.
  Phase phase() const { return phase_; }
  bool is_live() const { return lanes_.stuck_seconds() <= options_.stuck_seconds; }
  std::string why_not_live() const;
  bool has_model() const { return loaded_ != nullptr; }
  int64_t inflight() const { return metrics_.inflight; }
  const AppOptions& options() const { return options_; }
  Metrics& metrics() { return metrics_; }
  std::shared_ptr<const Model> model() const;  // throws HttpError 503 while loading
  // Runs `inputs` here or in a lane; `done` comes in either's thread. A request of a user: only HTTP has probes.
  void infer(const Model& model, std::vector<Tensor> inputs, std::function<bool()> wanted, std::function<void(Result)> done);

 private:
  using Getter = Response (App::*)() const;
  using Prepare = Work (App::*)(const std::shared_ptr<const Model>&, Request&) const;
  // A request that is counted: since when, whether apart from users' requests, for which experiment besides, and the way back to its client.
  struct Asked {
    Clock::time_point from;
    bool is_probe;
    std::string experiment;
    Responder respond;
  };

  // Whether a call is short enough to be made on the caller's thread; never again once such a call took long.
  bool runs_inline(const Model& model, const std::vector<Tensor>& inputs) const { return inline_ && !model.batched && model.runs_inline(inputs); }
  Result run_inline(const std::vector<Tensor>& inputs, bool is_probe);
  Response get(const Request& request) const;
  void ask(Prepare prepare, Request& request, const Responder& respond);
  void run(const std::shared_ptr<const Model>& model, Work work, const Asked& asked);
  void finish(Response&& response, const Asked& asked);
  Work prepare_infer(const std::shared_ptr<const Model>& model, Request& request) const;
  Work prepare_golden(const std::shared_ptr<const Model>& model) const;
  Work prepare_predict(const std::shared_ptr<const Model>& model, Request& request) const;
  Response live() const;
  Response ready() const;
  Response model_ready() const;
  Response server() const;
  Response described() const;
  Response metrics_text() const;
  Response docs() const;
  Response openapi() const;

  AppOptions options_;
  Post post_;
  mutable Metrics metrics_;
  std::vector<std::pair<std::string, Getter>> gets_;
  std::vector<std::pair<std::string, Prepare>> posts_;
  std::atomic<Phase> phase_{Phase::Loading};
  std::atomic<bool> inline_{true};
  std::shared_ptr<const Model> model_;           // set once, before loaded_
  std::atomic<const Model*> loaded_{nullptr};
  Lanes lanes_;
};

}  // namespace slipway
