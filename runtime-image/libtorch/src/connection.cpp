#include "connection.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/asio/write.hpp>
#include <sys/socket.h>

#include <cerrno>
#include <ctime>

namespace slipway {

namespace {

namespace net = boost::asio;
namespace http = boost::beast::http;
using Error = boost::system::error_code;

constexpr size_t kMaxHeaderBytes = 64 * 1024, kReadBytes = 64 * 1024;
constexpr auto kLinger = std::chrono::seconds(2);

std::string_view phrase(int status) {
  switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 413: return "Content Too Large";
    case 415: return "Unsupported Media Type";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    default: return "Status";
  }
}

std::string_view view(boost::beast::string_view text) { return {text.data(), text.size()}; }

Probe probe_of(boost::beast::string_view value) {
  if (value.empty()) return Probe::None;
  return boost::beast::iequals(value, "golden") ? Probe::Golden : Probe::Other;
}

double seconds(std::chrono::steady_clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

}  // namespace

void Responder::operator()(Response&& response) const { connection_->reply(std::move(response)); }
std::shared_ptr<const std::atomic<bool>> Responder::defer() const { return connection_->defer(); }

void Hub::tick() {
  char date[64];
  const std::time_t now = std::time(nullptr);
  tm parts{};
  gmtime_r(&now, &parts);
  std::strftime(date, sizeof date, "date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts);
  common = fixed_headers + date;
}

void Hub::check() {
  const auto now = std::chrono::steady_clock::now();
  std::vector<std::shared_ptr<Connection>> all;  // a check may end a connection, which leaves the set
  for (Connection* connection : connections) all.push_back(connection->shared_from_this());
  for (const auto& connection : all) connection->check(now);
}

Connection::Connection(Hub& hub, Socket socket) : hub_(hub), socket_(std::move(socket)) { hub_.connections.insert(this); }

void Connection::start() {
  Error ignored;
  socket_.set_option(net::ip::tcp::no_delay(true), ignored);
  socket_.non_blocking(true, ignored);
  message_at_ = data_at_ = Clock::now();
  if (hub_.connections.size() > hub_.limits.max_connections) refuse(HttpError(503, "too many connections", 1));
  else read();
}

// --- reading ---------------------------------------------------------------------------------------------------------------------------

void Connection::read() {
  reading_ = true;
  socket_.async_read_some(buffer_.prepare(kReadBytes), [self = shared_from_this()](const Error& error, size_t count) {
    self->reading_ = false;
    if (self->state_ == State::Closed) return;
    if (!error && self->state_ == State::Lingering) return self->discard();
    if (error) self->close();  // also an end of input: nginx and Go take it so too
    else self->received(count);
  });
}

void Connection::received(size_t count) {
  buffer_.commit(count);
  data_at_ = Clock::now();
  pump();
}

// Takes what the buffer holds, request by request, until an answer is due or more bytes are needed.
void Connection::pump() {
  if (pumping_) return;
  pumping_ = true;
  while (state_ == State::Reading && buffer_.size() > 0 && parse()) {
  }
  pumping_ = false;
  if (state_ == State::Reading && !reading_) read();
}

// Feeds the parser; false when it needs more bytes.
bool Connection::parse() {
  if (!in_message_) begin_message();
  Error error;
  const size_t used = parser_->put(buffer_.data(), error);
  buffer_.consume(used);
  if (error == http::error::need_more) error = {};
  if (!error && !head_done_ && parser_->is_header_done()) head_complete();
  if (state_ != State::Reading) return false;
  if (error == http::error::body_limit) refuse(HttpError(413, "the body is larger than " + std::to_string(hub_.limits.max_body_bytes) + " bytes"));
  else if (error == http::error::header_limit) refuse(HttpError(431, "the headers are larger than " + std::to_string(kMaxHeaderBytes) + " bytes"));
  else if (error) refuse(HttpError(400, "malformed HTTP: " + error.message()));
  else if (!parser_->is_header_done() && buffer_.size() > kMaxHeaderBytes) refuse(HttpError(431, "the headers are larger than " + std::to_string(kMaxHeaderBytes) + " bytes"));
  else if (parser_->is_done()) dispatch();
  else return used > 0;
  return true;
}

void Connection::begin_message() {
  in_message_ = true;
  head_done_ = false;
  message_at_ = Clock::now();
  parser_.emplace();
  parser_->eager(true);
  parser_->body_limit(hub_.limits.max_body_bytes);
  parser_->header_limit(kMaxHeaderBytes);
}

// Invites a body that waits for it.
void Connection::head_complete() {
  head_done_ = true;
  if (!boost::beast::iequals(parser_->get()[http::field::expect], "100-continue")) return;
  static constexpr std::string_view kContinue = "HTTP/1.1 100 Continue\r\n\r\n";
  Error ignored;  // 25 bytes into an empty send buffer; a socket that cannot take them is found out by the answer
  socket_.write_some(net::buffer(kContinue.data(), kContinue.size()), ignored);
}

void Connection::dispatch() {
  auto& message = parser_->get();
  Request request;
  request.method = std::string(view(message.method_string()));
  const std::string_view target = view(message.target());
  request.path = std::string(target.substr(0, target.find('?')));
  request.content_type = std::string(view(message[http::field::content_type]));
  if (const auto found = message.find("Inference-Header-Content-Length"); found != message.end()) request.header_length = std::string(view(found->value()));
  request.probe = probe_of(message["x-slipway-probe"]);
  request.experiment = std::string(view(message["x-slipway-experiment"]));
  *request.body = std::move(message.body());
  keep_alive_ = message.keep_alive();
  head_only_ = request.method == "HEAD";
  in_message_ = false;
  state_ = State::Handling;
  hub_.handle(request, Responder(shared_from_this()));
}

std::shared_ptr<const std::atomic<bool>> Connection::defer() {
  watch();
  return gone_;
}

// While a request is with a lane, an end of input means that nobody waits for its answer.
void Connection::watch() {
  if (watching_ || buffer_.size() > 0) return;
  watching_ = true;
  socket_.async_wait(Socket::wait_read, [self = shared_from_this()](const Error& error) {
    self->watching_ = false;
    if (error || self->state_ != State::Handling) return;
    char byte = 0;
    const ssize_t got = ::recv(self->socket_.native_handle(), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)) self->close();
    else if (got < 0) self->watch();
  });
}

// --- answers ---------------------------------------------------------------------------------------------------------------------------

void Connection::reply(Response&& response) {
  if (state_ != State::Handling) return;
  served_ = true;
  // While draining the answer says close, unless another request is here already, which would be cut off.
  const bool keep_alive = keep_alive_ && !(hub_.draining && buffer_.size() == 0);
  send(response, keep_alive);
  if (state_ == State::Reading) pump();
}

void Connection::refuse(const HttpError& error) {
  linger_after_ = true;
  in_message_ = head_only_ = false;
  send(error_response(error), false);
}

void Connection::send(const Response& response, bool keep_alive) {
  out_.clear();
  out_.reserve(response.body.size() + 256);
  out_ += "HTTP/1.1 ";
  json::append_number(out_, response.status);
  ((((out_ += ' ') += phrase(response.status)) += "\r\ncontent-type: ") += response.content_type) += "\r\ncontent-length: ";
  json::append_number(out_, response.body.size());
  out_ += "\r\n";
  for (const auto& [name, value] : response.headers) (((out_ += name) += ": ") += value) += "\r\n";
  out_ += hub_.common;
  out_ += keep_alive ? "\r\n" : "connection: close\r\n\r\n";
  if (!head_only_) out_ += response.body;
  close_after_ = !keep_alive;
  state_ = State::Writing;
  sent_ = 0;
  write_at_ = Clock::now();
  // Most answers fit into the socket's buffer, which spares a turn of the loop.
  Error error;
  sent_ = socket_.write_some(net::buffer(out_), error);
  if (error && error != net::error::would_block) close();
  else if (sent_ == out_.size()) written();
  else write();
}

void Connection::write() {
  socket_.async_write_some(net::buffer(out_.data() + sent_, out_.size() - sent_), [self = shared_from_this()](const Error& error, size_t count) {
    if (self->state_ != State::Writing) return;
    if (error) return self->close();
    self->sent_ += count;
    if (self->sent_ < self->out_.size()) return self->write();
    self->written();
    if (self->state_ == State::Reading) self->pump();
  });
}

void Connection::written() {
  data_at_ = Clock::now();
  if (out_.capacity() > (1 << 20)) std::string().swap(out_);
  if (!close_after_) state_ = State::Reading;
  else if (linger_after_) linger();
  else close();
}

// Closing with unread bytes sends a reset, and the client would lose the answer that says why.
void Connection::linger() {
  state_ = State::Lingering;
  linger_until_ = Clock::now() + kLinger;
  Error ignored;
  socket_.shutdown(Socket::shutdown_send, ignored);
  if (!reading_) discard();
}

void Connection::discard() {
  buffer_.clear();
  socket_.async_read_some(buffer_.prepare(kReadBytes), [self = shared_from_this()](const Error& error, size_t) {
    if (self->state_ != State::Lingering) return;
    if (error) self->close();
    else self->discard();
  });
}

void Connection::close() {
  if (state_ == State::Closed) return;
  state_ = State::Closed;
  hub_.connections.erase(this);  // here and not in the destructor, which may run in a lane
  gone_->store(true, std::memory_order_relaxed);
  Error ignored;
  socket_.shutdown(Socket::shutdown_both, ignored);
  socket_.close(ignored);
}

// --- time ------------------------------------------------------------------------------------------------------------------------------

void Connection::check(Clock::time_point now) {
  const Limits& limits = hub_.limits;
  if (state_ == State::Lingering && now > linger_until_) close();
  else if (state_ == State::Writing && seconds(now - write_at_) > limits.body_seconds) close();
  else if (state_ == State::Reading && in_message_) {
    const double age = seconds(now - message_at_);
    if ((!head_done_ && age > limits.header_seconds) || age > limits.message_seconds || seconds(now - data_at_) > limits.body_seconds)
      refuse(HttpError(408, "the request took too long to arrive"));
  } else if (state_ == State::Reading && seconds(now - data_at_) > (served_ ? limits.idle_seconds : limits.header_seconds)) close();
}

}  // namespace slipway
