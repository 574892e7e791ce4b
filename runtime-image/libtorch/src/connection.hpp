// One HTTP/1.1 connection: bytes to requests and answers to bytes, in order. Knows nothing of models.
//
// The parser is Boost.Beast's and the sockets are Asio's. What they do not do is done here: limits, 100-continue, refusals that the client
// can still read, timeouts (by `check`, called every second), noticing that a client has left, and closing without a reset. A request that
// follows another on the same connection waits for its answer; different connections run side by side. All of it is on one thread.
#pragma once

#include <utility>  // Asio 1.74 forgets it in C++20

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>

#include "messages.hpp"

namespace slipway {

struct Limits {
  size_t max_body_bytes = 32 << 20;
  double header_seconds = 10, body_seconds = 30, message_seconds = 300, idle_seconds = 75;
  size_t max_connections = 4096;
};

class Connection;

// Answers one request; may be kept and called later, on the loop's thread; only the first answer counts.
class Responder {
 public:
  explicit Responder(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
  void operator()(Response&& response) const;
  // Tells the connection that the answer comes later; returns a flag, for any thread, that turns true when the client leaves.
  std::shared_ptr<const std::atomic<bool>> defer() const;

 private:
  std::shared_ptr<Connection> connection_;
};

// What all connections share.
struct Hub {
  std::function<void(Request&, const Responder&)> handle;
  Limits limits;
  std::string fixed_headers, common;  // header lines of every answer; `common` is those and the date, renewed every second
  bool draining = false;
  std::unordered_set<Connection*> connections;

  void tick();   // the Date header
  void check();  // the timeouts of all connections
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  using Socket = boost::asio::ip::tcp::socket;
  Connection(Hub& hub, Socket socket);

  void start();
  void reply(Response&& response);
  std::shared_ptr<const std::atomic<bool>> defer();
  bool is_busy() const { return state_ != State::Reading || in_message_; }
  bool served() const { return served_; }
  void close();
  void check(std::chrono::steady_clock::time_point now);

 private:
  using Clock = std::chrono::steady_clock;
  using Parser = boost::beast::http::request_parser<boost::beast::http::string_body>;
  enum class State { Reading, Handling, Writing, Lingering, Closed };

  void read();
  void received(size_t count);
  void pump();
  bool parse();
  void begin_message();
  void head_complete();
  void dispatch();
  void watch();
  void refuse(const HttpError& error);
  void send(const Response& response, bool keep_alive);
  void write();
  void written();
  void linger();
  void discard();

  Hub& hub_;
  Socket socket_;
  boost::beast::flat_buffer buffer_;
  std::optional<Parser> parser_;
  State state_ = State::Reading;
  bool reading_ = false, pumping_ = false, watching_ = false, in_message_ = false, head_done_ = false, served_ = false;
  bool keep_alive_ = true, head_only_ = false, close_after_ = false, linger_after_ = false;
  std::string out_;
  size_t sent_ = 0;
  Clock::time_point message_at_, data_at_, write_at_, linger_until_;
  std::shared_ptr<std::atomic<bool>> gone_ = std::make_shared<std::atomic<bool>>(false);
};

}  // namespace slipway
