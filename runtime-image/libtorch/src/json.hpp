// Writing JSON into a string. Reading is simdjson's.
#pragma once

#include <charconv>
#include <cmath>
#include <concepts>
#include <cstring>
#include <string>
#include <string_view>

namespace slipway::json {

// Appends `text` quoted; bytes that are not UTF-8 become U+FFFD, so that the result is JSON whatever came in.
void append_string(std::string& out, std::string_view text);

inline std::string quoted(std::string_view text) {
  std::string out;
  append_string(out, text);
  return out;
}

// Appends a number; the room is reserved by the caller's string growing. Whole floats keep a ".0"; NaN and infinities are null
// (JSON has no word for them, and a client that meets null fails loudly).
template <typename T>
void append_number(std::string& out, T value) {
  char digits[32];
  if constexpr (std::floating_point<T>) {
    if (!std::isfinite(value)) {
      out += "null";
      return;
    }
    char* end = std::to_chars(digits, digits + sizeof digits, value).ptr;
    const std::string_view text(digits, static_cast<size_t>(end - digits));
    out += text;
    if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
  } else {
    char* end = std::to_chars(digits, digits + sizeof digits, value).ptr;
    out.append(digits, static_cast<size_t>(end - digits));
  }
}

}  // namespace slipway::json
