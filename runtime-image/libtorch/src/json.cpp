#include "json.hpp"

#include <cstdint>

namespace slipway::json {

namespace {

// Length of the valid UTF-8 sequence at `at`, 0 when there is none (overlong, surrogate and beyond U+10FFFF included).
size_t sequence(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : 0U; };
  const auto follows = [&](size_t i) { return (byte(i) & 0xC0U) == 0x80U; };
  const unsigned lead = byte(at), next = byte(at + 1);
  if (lead < 0x80) return 1;
  if (lead >= 0xC2 && lead <= 0xDF) return follows(at + 1) ? 2 : 0;
  if (lead >= 0xE0 && lead <= 0xEF) {
    const bool ok = follows(at + 1) && follows(at + 2) && !(lead == 0xE0 && next < 0xA0) && !(lead == 0xED && next > 0x9F);
    return ok ? 3 : 0;
  }
  if (lead >= 0xF0 && lead <= 0xF4) {
    const bool ok = follows(at + 1) && follows(at + 2) && follows(at + 3) && !(lead == 0xF0 && next < 0x90) && !(lead == 0xF4 && next > 0x8F);
    return ok ? 4 : 0;
  }
  return 0;
}

}  // namespace

void append_string(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  out += '"';
  for (size_t at = 0; at < text.size();) {
    const char c = text[at];
    const size_t length = sequence(text, at);
    if (length == 0) out += "\xEF\xBF\xBD";
    else if (length > 1) out.append(text, at, length);
    else if (c == '"' || c == '\\') (out += '\\') += c;
    else if (static_cast<uint8_t>(c) < 0x20) ((out += "\\u00") += kHex[c >> 4]) += kHex[c & 15];
    else out += c;
    at += length ? length : 1;
  }
  out += '"';
}

}  // namespace slipway::json
