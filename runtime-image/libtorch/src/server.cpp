#include "server.hpp"

#include <boost/asio/ip/v6_only.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <csignal>
#include <exception>
#include <thread>

#include "failure.hpp"
#include "grpc.hpp"
#include "model.hpp"

namespace slipway {

namespace {

namespace net = boost::asio;
using tcp = net::ip::tcp;
using Error = boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr int kBacklog = 1024;
constexpr auto kDrainLimit = std::chrono::seconds(50);
// When a call of the model does not return, its clients wait in vain, and the sooner the pod starts again the better.
constexpr double kStuckLimitSeconds = 5;
// A client that connected just before the listener closed gets this long to send its request.
constexpr auto kFresh = std::chrono::seconds(1);

Clock::duration in_seconds(double seconds) { return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds)); }

class Server {
 public:
  explicit Server(const ServerOptions& options)
      : options_(options), app_(options.app, [this](std::function<void()> task) { net::post(io_, std::move(task)); }), acceptor_(io_), timer_(io_), drain_timer_(io_), signals_(io_, SIGTERM, SIGINT) {
    hub_.handle = [this](Request& request, const Responder& respond) { app_.handle(request, respond); };
    hub_.limits = options.limits;
    hub_.fixed_headers = "x-slipway-revision: " + options.app.revision + "\r\n";
    hub_.tick();
  }

  bool run() {
    listen();
    if (options_.grpc_port) grpc_ = start_grpc(app_, options_.host, options_.grpc_port, options_.limits.max_body_bytes);
    accept();
    tick();
    signals_.async_wait([this](const Error& error, int) {
      if (!error) drain();
    });
    std::thread loader([this] { load(); });
    log_line("INFO", "listening on port " + std::to_string(acceptor_.local_endpoint().port()));
    const auto work = net::make_work_guard(io_);
    io_.run();
    if (grpc_) grpc_->stop();
    const bool ended = app_.close_lanes() && !loading_;
    loading_ ? loader.detach() : loader.join();
    if (failure_) throw *failure_;
    return ended;
  }

 private:
  // Without an address it listens on all, IPv6 and IPv4 by one socket where the kernel has IPv6.
  void listen() {
    const bool any = options_.host.empty() || options_.host == "::";
    Error error;
    const auto on = [&](const net::ip::address& address) {
      const tcp::endpoint endpoint(address, options_.port);
      acceptor_.close(error);
      acceptor_.open(endpoint.protocol(), error);
      if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
      if (!error && address.is_v6()) acceptor_.set_option(net::ip::v6_only(false), error);
      if (!error) acceptor_.bind(endpoint, error);
      if (!error) acceptor_.listen(kBacklog, error);
    };
    if (any) on(net::ip::address_v6::any());
    if (any && error == net::error::address_family_not_supported) on(net::ip::address_v4::any());
    if (!any) {
      const auto address = net::ip::make_address(options_.host, error);
      if (!error) on(address);
    }
    if (error) throw Failure("InvalidArguments", "cannot listen on " + (any ? "::" : options_.host) + ":" + std::to_string(options_.port) + ": " + error.message());
    acceptor_.non_blocking(true);
  }

  void accept() {
    acceptor_.async_accept([this](const Error& error, tcp::socket socket) {
      if (!error) std::make_shared<Connection>(hub_, std::move(socket))->start();
      else if (error == net::error::operation_aborted) return;
      else if (error != net::error::connection_aborted) return pause_accept(error);
      accept();
    });
  }

  // Out of file descriptors, mostly: trying again at once would only burn the CPU.
  void pause_accept(const Error& error) {
    log_line("WARNING", "accept: " + error.message());
    const auto timer = std::make_shared<net::steady_timer>(io_, std::chrono::milliseconds(100));
    timer->async_wait([this, timer](const Error& ended) {
      if (!ended && acceptor_.is_open()) accept();
    });
  }

  void tick() {
    timer_.expires_after(std::chrono::seconds(1));
    timer_.async_wait([this](const Error& error) {
      if (error) return;
      hub_.tick();
      hub_.check();
      tick();
    });
  }

  // --- load ------------------------------------------------------------------------------------------------------------------------------

  void load() {
    try {
      Artifact artifact = open_artifact(options_.model_dir, options_.artifact_digest);
      std::shared_ptr<Model> model = load_model(std::move(artifact), options_.threads, options_.app.lanes.lanes, options_.app.lanes.max_batch,
                                                options_.labels ? &*options_.labels : nullptr);
      net::post(io_, [this, model] { install(model); });
    } catch (const Failure& failure) {
      net::post(io_, [this, failure] { fail(failure); });
    } catch (const std::exception& error) {
      net::post(io_, [this, text = std::string(error.what())] { fail(Failure("InternalError", text.substr(0, 1500))); });
    }
  }

  void install(const std::shared_ptr<Model>& model) {
    loading_ = false;
    enter_inference_thread(options_.threads);
    app_.install(model, [threads = options_.threads] { enter_inference_thread(threads); });
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, "%.2f", model->load_seconds);
    const std::string how = model->batched ? "batches of up to " + std::to_string(options_.app.lanes.max_batch)
                            : model->inline_elements ? "inline up to " + std::to_string(model->inline_elements) + " elements"
                                                     : std::to_string(options_.app.lanes.lanes) + " lanes";
    log_line("INFO", "ready: " + model->artifact.format + " " + model->artifact.digest + " in " + seconds + " s, libtorch " + torch_version() + ", " + how);
  }

  void fail(const Failure& failure) {
    loading_ = false;
    failure_ = failure;
    io_.stop();
  }

  // --- drain -----------------------------------------------------------------------------------------------------------------------------

  // Turns unready, goes on answering with `Connection: close`, and ends when nobody waits for an answer.
  void drain() {
    log_line("INFO", "draining: " + std::to_string(hub_.connections.size()) + " connections, " + std::to_string(app_.inflight()) + " requests");
    app_.set_draining();
    hub_.draining = true;
    deadline_ = Clock::now() + (app_.is_live() ? Clock::duration(kDrainLimit) : in_seconds(options_.drain_seconds + kStuckLimitSeconds));
    // Endpoints, kube-proxy and gateways learn of the unready pod only after a while; until then new clients come.
    after(app_.has_model() ? options_.drain_seconds : 0, [this] { close_listener(); });
  }

  void after(double seconds, std::function<void()> next) {
    drain_timer_.expires_after(in_seconds(seconds));
    drain_timer_.async_wait([next = std::move(next)](const Error& error) {
      if (!error) next();
    });
  }

  // Takes what the kernel has queued before it closes: closing a listener resets those clients.
  void close_listener() {
    Error error;
    acceptor_.cancel(error);
    while (true) {
      tcp::socket socket(io_);
      acceptor_.accept(socket, error);
      if (error) break;
      std::make_shared<Connection>(hub_, std::move(socket))->start();
    }
    acceptor_.close(error);
    if (grpc_) grpc_->drain(deadline_);
    fresh_until_ = Clock::now() + kFresh;
    finish();
  }

  void finish() {
    const auto now = Clock::now();
    std::vector<std::shared_ptr<Connection>> all;
    for (Connection* connection : hub_.connections) all.push_back(connection->shared_from_this());
    for (const auto& connection : all)
      if ((connection->served() || now >= fresh_until_) && !connection->is_busy()) connection->close();
    all.clear();
    const bool idle = hub_.connections.empty() && app_.inflight() == 0;
    if (!idle && now < deadline_) return after(0.02, [this] { finish(); });
    log_line("INFO", "drained: " + std::to_string(hub_.connections.size()) + " connections cut off");
    if (!app_.is_live()) failure_ = Failure("ModelStuck", app_.why_not_live());
    io_.stop();
  }

  const ServerOptions& options_;
  net::io_context io_{1};
  Hub hub_;
  App app_;
  tcp::acceptor acceptor_;
  net::steady_timer timer_, drain_timer_;
  net::signal_set signals_;
  std::unique_ptr<GrpcServer> grpc_;
  bool loading_ = true;
  std::optional<Failure> failure_;
  Clock::time_point deadline_, fresh_until_;
};

}  // namespace

bool serve(const ServerOptions& options) {
  // On the heap and left there: a thread that never returns may still use it while the process leaves.
  auto* server = new Server(options);
  const bool ended = server->run();
  if (ended) delete server;
  return ended;
}

}  // namespace slipway
