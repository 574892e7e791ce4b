#include "form.hpp"

#include <algorithm>
#include <cctype>

namespace slipway {

namespace {

constexpr std::string_view kField = "image";
constexpr size_t kMaxFiles = 256;

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

// The value of a parameter such as boundary=x or name="image"; empty when absent. Keys are matched without case.
std::string parameter(std::string_view header, std::string_view key) {
  size_t at = header.find(';');
  while (at != std::string_view::npos) {
    const size_t from = header.find_first_not_of("; \t", at), equals = header.find('=', at);
    if (from == std::string_view::npos || equals == std::string_view::npos || equals < from) return "";
    const bool matches = lower(header.substr(from, equals - from)) == key;
    if (equals + 1 < header.size() && header[equals + 1] == '"') {
      const size_t end = header.find('"', equals + 2);
      if (end == std::string_view::npos) return "";
      if (matches) return std::string(header.substr(equals + 2, end - equals - 2));
      at = header.find(';', end);
    } else {
      at = header.find(';', equals);
      const std::string_view value = header.substr(equals + 1, at == std::string_view::npos ? at : at - equals - 1);
      if (matches) return std::string(value.substr(0, value.find_last_not_of(" \t") + 1));
    }
  }
  return "";
}

bool is_image_part(std::string_view headers) {
  while (!headers.empty()) {
    const size_t end = headers.find("\r\n");
    const std::string_view line = headers.substr(0, end);
    const size_t colon = line.find(':');
    if (colon != std::string_view::npos && lower(line.substr(0, colon)) == "content-disposition") return parameter(line.substr(colon + 1), "name") == kField;
    headers.remove_prefix(end == std::string_view::npos ? headers.size() : end + 2);
  }
  return false;
}

std::vector<std::string_view> parts(std::string_view body, const std::string& boundary) {
  const std::string mark = "--" + boundary, next = "\r\n" + mark;
  const auto malformed = [](const char* what) { return BadRequest(std::string("malformed multipart/form-data: ") + what); };
  std::vector<std::string_view> found;
  size_t at = body.find(mark);  // a preamble before the first boundary is allowed and skipped
  if (at == std::string_view::npos) throw malformed("the boundary does not occur");
  at += mark.size();
  while (body.substr(at, 2) != "--") {
    if (body.substr(at, 2) != "\r\n") throw malformed("a boundary is not followed by a line end");
    at += 2;
    const size_t head = body.substr(at, 2) == "\r\n" ? at - 2 : body.find("\r\n\r\n", at);
    if (head == std::string_view::npos) throw malformed("a part has no end of its headers");
    const size_t end = body.find(next, head + 2);
    if (end == std::string_view::npos) throw malformed("a part does not end with the boundary");
    const size_t from = std::min(head + 4, end);
    if (head >= at && is_image_part(body.substr(at, head - at))) found.push_back(body.substr(from, end - from));
    at = end + next.size();
  }
  return found;
}

}  // namespace

bool is_upload(std::string_view content_type) {
  const std::string type = lower(content_type);
  return type.starts_with("multipart/form-data") || type.starts_with("image/");
}

std::vector<std::string_view> uploaded_images(const Request& request) {
  const std::string type = lower(request.content_type);
  std::vector<std::string_view> files;
  if (type.starts_with("image/")) {
    files.emplace_back(*request.body);
  } else {
    const std::string boundary = parameter(request.content_type, "boundary");
    if (!type.starts_with("multipart/form-data")) throw HttpError(415, "expected an image or multipart/form-data, got '" + request.content_type + "'");
    if (boundary.empty() || boundary.size() > 200) throw BadRequest("multipart/form-data without a boundary");
    files = parts(*request.body, boundary);
  }
  const bool empty = std::any_of(files.begin(), files.end(), [](std::string_view file) { return file.empty(); });
  if (files.empty() || empty) throw BadRequest("no image: send a form field 'image' with a file, or an image as the body");
  if (files.size() > kMaxFiles) throw BadRequest("at most 256 images in a request, got " + std::to_string(files.size()));
  return files;
}

}  // namespace slipway
