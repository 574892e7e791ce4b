#include "npz.hpp"

#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>

#include "failure.hpp"

namespace slipway {

namespace {

constexpr size_t kMaxArray = size_t{4} << 30;

// Little-endian fields at checked offsets.
struct Bytes {
  std::string_view data;

  std::string_view part(uint64_t at, uint64_t size) const {
    if (at > data.size() || size > data.size() - at) throw std::runtime_error("the file is cut off");
    return data.substr(at, size);
  }
  uint64_t number(uint64_t at, int size) const {
    const std::string_view field = part(at, static_cast<uint64_t>(size));
    uint64_t value = 0;
    for (int i = size - 1; i >= 0; --i) value = value << 8 | static_cast<uint8_t>(field[static_cast<size_t>(i)]);
    return value;
  }
};

struct Entry {
  std::string name;
  uint64_t method, packed, size, offset, crc;
};

std::string inflated(std::string_view packed, size_t size) {
  if (size > kMaxArray) throw std::runtime_error("an array is larger than 4 GiB");
  std::string out(size, '\0');
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw std::runtime_error("zlib does not start");
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  const int ended = inflate(&stream, Z_FINISH);
  inflateEnd(&stream);
  if (ended != Z_STREAM_END || stream.total_out != size) throw std::runtime_error("a member does not inflate to its size");
  return out;
}

// The central directory; numpy writes zip64 fields in its local headers only, but large files have them here too.
std::vector<Entry> directory(const Bytes& zip) {
  constexpr uint64_t kEnd = 22;
  if (zip.data.size() < kEnd) throw std::runtime_error("not a zip file");
  uint64_t end = zip.data.size() - kEnd;
  const uint64_t lowest = end > 65535 ? end - 65535 : 0;
  while (zip.number(end, 4) != 0x06054b50) {
    if (end == lowest) throw std::runtime_error("not a zip file");
    --end;
  }
  std::vector<Entry> entries;
  uint64_t at = zip.number(end + 16, 4);
  for (uint64_t left = zip.number(end + 10, 2); left > 0; --left) {
    if (zip.number(at, 4) != 0x02014b50) throw std::runtime_error("the zip directory is damaged (zip64 archives are not read)");
    const uint64_t name = zip.number(at + 28, 2), extra = zip.number(at + 30, 2), comment = zip.number(at + 32, 2);
    entries.push_back({std::string(zip.part(at + 46, name)), zip.number(at + 10, 2), zip.number(at + 20, 4), zip.number(at + 24, 4),
                       zip.number(at + 42, 4), zip.number(at + 16, 4)});
    at += 46 + name + extra + comment;
  }
  return entries;
}

std::string member(const Bytes& zip, const Entry& entry) {
  if (zip.number(entry.offset, 4) != 0x04034b50) throw std::runtime_error("a zip member is damaged");
  const uint64_t from = entry.offset + 30 + zip.number(entry.offset + 26, 2) + zip.number(entry.offset + 28, 2);
  const std::string_view packed = zip.part(from, entry.packed);
  if (entry.method != 0 && entry.method != 8) throw std::runtime_error("a zip member is packed by an unknown method");
  std::string data = entry.method == 0 ? std::string(packed) : inflated(packed, entry.size);
  const uLong crc = crc32_z(crc32(0, nullptr, 0), reinterpret_cast<const Bytef*>(data.data()), data.size());
  if (crc != entry.crc) throw std::runtime_error("the checksum of " + entry.name + " is wrong");
  return data;
}

// The value of a key in the header's Python literal, up to the next comma outside brackets.
std::string_view field(std::string_view header, std::string_view key) {
  size_t at = header.find(key);
  if (at == std::string_view::npos) throw std::runtime_error("the npy header lacks " + std::string(key));
  at = header.find_first_not_of(" ", at + key.size());
  const size_t end = header[at] == '(' ? header.find(')', at) + 1 : header.find_first_of(",}", at);
  return header.substr(at, end - at);
}

DType dtype_of(std::string_view descr) {
  static const std::map<std::string_view, DType> kKnown{
      {"|b1", DType::Bool},    {"|u1", DType::UInt8},   {"|i1", DType::Int8},  {"<u2", DType::UInt16},  {"<u4", DType::UInt32}, {"<u8", DType::UInt64},
      {"<i2", DType::Int16},   {"<i4", DType::Int32},   {"<i8", DType::Int64}, {"<f2", DType::Float16}, {"<f4", DType::Float32}, {"<f8", DType::Float64}};
  const auto known = kKnown.find(descr.size() > 2 ? descr.substr(1, descr.size() - 2) : descr);
  if (known == kKnown.end()) throw std::runtime_error("arrays of " + std::string(descr) + " are not read");
  return known->second;
}

}  // namespace

Tensor read_npy(std::string_view text) {
  const Bytes file{text};
  if (file.part(0, 6) != "\x93NUMPY") throw std::runtime_error("not an npy file");
  const int width = file.number(6, 1) == 1 ? 2 : 4;
  const uint64_t from = 8 + static_cast<uint64_t>(width), length = file.number(8, width);
  const std::string_view header = file.part(from, length);
  if (field(header, "'fortran_order':") != "False") throw std::runtime_error("Fortran order is not read");
  const DType dtype = dtype_of(field(header, "'descr':"));
  Shape shape;
  for (std::string_view dims = field(header, "'shape':"); (dims = dims.substr(std::min(dims.find_first_of("0123456789"), dims.size()))).size();) {
    const size_t digits = std::min(dims.find_first_not_of("0123456789"), dims.size());
    shape.push_back(std::stoll(std::string(dims.substr(0, digits))));
    dims.remove_prefix(digits);
  }
  const auto bytes = bytes_of(dtype, shape);
  if (!bytes) throw std::runtime_error("the shape is too large");
  return tensor_on(dtype, std::move(shape), file.part(from + length, *bytes).data(), *bytes, nullptr);
}

std::map<std::string, Tensor> read_npz(const std::filesystem::path& path) {
  try {
    std::ifstream stream(path, std::ios::binary);
    const std::string data{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
    const Bytes zip{data};
    std::map<std::string, Tensor> arrays;
    for (const Entry& entry : directory(zip))
      if (entry.name.ends_with(".npy")) arrays[entry.name.substr(0, entry.name.size() - 4)] = read_npy(member(zip, entry));
    return arrays;
  } catch (const std::exception& error) {
    throw Failure("ArtifactCorrupt", path.filename().string() + " cannot be read: " + error.what());
  }
}

}  // namespace slipway
