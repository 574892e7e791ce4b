#include "artifact.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <simdjson.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "failure.hpp"

namespace slipway {

namespace {

namespace fs = std::filesystem;
using simdjson::dom::element;

constexpr size_t kMaxJsonBytes = 16 << 20, kChunk = 1 << 20;

[[noreturn]] void corrupt(const std::string& text) { throw Failure("ArtifactCorrupt", text); }

// A regular file, not followed through a link at its end.
class PlainFile {
 public:
  explicit PlainFile(const fs::path& path) : fd_(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)) {
    struct stat found {};
    if (fd_ < 0) corrupt("cannot read " + path.filename().string() + ": " + std::strerror(errno));
    if (::fstat(fd_, &found) != 0 || !S_ISREG(found.st_mode)) {
      ::close(fd_);
      corrupt(path.string() + " is not a regular file");
    }
    size = static_cast<uint64_t>(found.st_size);
  }
  PlainFile(const PlainFile&) = delete;
  PlainFile& operator=(const PlainFile&) = delete;
  ~PlainFile() { ::close(fd_); }

  size_t read(char* into, size_t count) const {
    const ssize_t got = ::read(fd_, into, count);
    if (got < 0) corrupt(std::string("read: ") + std::strerror(errno));
    return static_cast<size_t>(got);
  }

  uint64_t size = 0;

 private:
  int fd_;
};

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) { EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr); }
  void update(const char* data, size_t size) { EVP_DigestUpdate(context_.get(), data, size); }
  std::string hex() {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned size = 0;
    EVP_DigestFinal_ex(context_.get(), digest, &size);
    std::string text;
    for (unsigned i = 0; i < size; ++i) (text += "0123456789abcdef"[digest[i] >> 4]) += "0123456789abcdef"[digest[i] & 15];
    return text;
  }

 private:
  std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context_;
};

std::string sha256(const std::string& data) {
  Sha256 hash;
  hash.update(data.data(), data.size());
  return hash.hex();
}

std::string read_small(const fs::path& directory, const std::string& name) {
  const PlainFile file(directory / name);
  if (file.size > kMaxJsonBytes) corrupt(name + " has " + std::to_string(file.size) + " bytes, more than " + std::to_string(kMaxJsonBytes));
  std::string data(file.size, '\0');
  size_t at = 0;
  while (at < data.size()) {
    const size_t got = file.read(data.data() + at, data.size() - at);
    if (got == 0) break;
    at += got;
  }
  data.resize(at);
  return data;
}

std::string text_of(const element& value) { return std::string(std::string_view(value)); }

// A path that is relative, normal and inside its folder.
std::string safe_path(const element& value) {
  const std::string path = text_of(value);
  const bool odd = path.empty() || path.find('\\') != std::string::npos || path.find('\0') != std::string::npos;
  const fs::path pure(path);
  if (odd || pure.is_absolute() || pure.lexically_normal().string() != path || *pure.begin() == ".." || path == "." || path.back() == '/')
    throw std::invalid_argument("unsafe path '" + path + "'");
  return path;
}

struct Row {
  std::string path;
  uint64_t size = 0;
  std::string sha256;
  auto operator<=>(const Row&) const = default;
};

std::vector<Row> sorted(std::vector<Row> rows) {
  std::sort(rows.begin(), rows.end());
  const auto twice = std::adjacent_find(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return a.path == b.path; });
  if (twice != rows.end()) throw std::invalid_argument("the path " + twice->path + " is listed twice");
  return rows;
}

std::vector<Row> manifest_files(const element& manifest) {
  std::vector<Row> rows;
  for (const element layer : simdjson::dom::array(manifest["layers"])) {
    const std::string digest = text_of(layer["digest"]);
    if (!digest.starts_with("sha256:") || digest.size() != 71) throw std::invalid_argument("layer digest '" + digest + "' is not a sha256");
    rows.push_back({safe_path(layer["annotations"]["org.opencontainers.image.title"]), uint64_t(layer["size"]), digest.substr(7)});
  }
  return sorted(std::move(rows));
}

std::vector<Row> config_files(const element& config) {
  std::vector<Row> rows;
  for (const element row : simdjson::dom::array(config["files"]))
    rows.push_back({safe_path(row["path"]), uint64_t(row["sizeBytes"]), text_of(row["sha256"])});
  return sorted(std::move(rows));
}

std::vector<TensorSpec> specs_of(const element& list) {
  std::vector<TensorSpec> specs;
  for (const element item : simdjson::dom::array(list)) {
    const std::string name = text_of(item["name"]), dtype = text_of(item["dtype"]);
    const auto known = dtype_named(dtype);
    if (!known) throw Failure("ModelLoadFailed", "tensor '" + name + "' is " + dtype + ", which this server has no type for");
    TensorSpec spec{name, *known, {}};
    for (const element dim : simdjson::dom::array(item["shape"]))
      spec.shape.push_back(dim.is_string() ? Dim{-1, text_of(dim)} : Dim{int64_t(dim), {}});
    specs.push_back(std::move(spec));
  }
  return specs;
}

// A number that may have been written as a string ("1e-3": the API has no floats).
double number_of(const element& value) {
  if (!value.is_string()) return double(value);
  size_t used = 0;
  const std::string text = text_of(value);
  const double number = std::stod(text, &used);
  if (used != text.size()) throw std::invalid_argument("not a number: '" + text + "'");
  return number;
}

bool given(const element& object, std::string_view key, element& value) { return object[key].get(value) == simdjson::SUCCESS && !value.is_null(); }

std::vector<double> numbers_of(const element& value) {
  if (!value.is_array()) return {number_of(value)};
  std::vector<double> numbers;
  for (const element item : simdjson::dom::array(value)) numbers.push_back(number_of(item));
  return numbers;
}

std::optional<ImageSpec> image_of(const element& config) {
  element preprocessing, image, value;
  if (!given(config, "preprocessing", preprocessing) || !given(preprocessing, "image", image)) return std::nullopt;
  ImageSpec spec;
  try {
    if (given(image, "mode", value)) spec.mode = text_of(value);
    if (given(image, "layout", value)) spec.layout = text_of(value);
    if (given(image, "scale", value)) spec.scale = number_of(value);
    if (given(image, "mean", value)) spec.mean = numbers_of(value);
    if (given(image, "std", value)) spec.std = numbers_of(value);
    const std::vector<double> size = numbers_of(image["size"]);
    if (size.size() != 2 || size[0] < 1 || size[1] < 1 || size[0] > 65536 || size[1] > 65536) throw std::invalid_argument("size must be two positive numbers");
    spec.height = static_cast<int>(size[0]), spec.width = static_cast<int>(size[1]);
    const size_t channels = spec.mode == "L" ? 1 : spec.mode == "RGB" ? 3 : 0;
    if (!channels || (spec.layout != "NCHW" && spec.layout != "NHWC")) throw std::invalid_argument("mode is L or RGB, layout NCHW or NHWC");
    for (const auto* list : {&spec.mean, &spec.std})
      if (list->size() != 1 && list->size() != channels) throw std::invalid_argument("mean and std need one value, or one per channel");
    if (std::count(spec.std.begin(), spec.std.end(), 0.0)) throw std::invalid_argument("std must not be 0");
  } catch (const std::exception& error) {
    throw Failure("ModelLoadFailed", std::string("preprocessing.image is wrong: ") + error.what());
  }
  return spec;
}

Artifact described(const fs::path& directory, const std::string& digest, const element& config) {
  Artifact artifact;
  artifact.directory = directory, artifact.digest = digest;
  artifact.format = text_of(config["format"]), artifact.precision = text_of(config["precision"]);
  if (!std::string_view(config["entry"]).empty()) artifact.entry = safe_path(config["entry"]);
  artifact.inputs = specs_of(config["signature"]["inputs"]), artifact.outputs = specs_of(config["signature"]["outputs"]);
  if (artifact.inputs.empty() || artifact.outputs.empty()) throw Failure("SignatureMissing", "the artifact's signature has no inputs or no outputs");
  element value;
  if (given(config, "labels", value))
    for (const element label : simdjson::dom::array(value)) artifact.labels.push_back(text_of(label));
  if (given(config, "golden", value))
    artifact.golden = Golden{safe_path(value["inputs"]), safe_path(value["outputs"]), number_of(value["maxAbsoluteError"])};
  artifact.image = image_of(config);
  return artifact;
}

void check_file(const fs::path& directory, const Row& row) {
  for (fs::path parent = fs::path(row.path).parent_path(); !parent.empty(); parent = parent.parent_path())
    if (fs::is_symlink(directory / parent)) corrupt(row.path + " lies behind the link " + parent.string());
  const PlainFile file(directory / row.path);
  const std::string wanted = "wanted sha256:" + row.sha256;
  if (file.size != row.size) corrupt(row.path + " has " + std::to_string(file.size) + " bytes, wanted " + std::to_string(row.size) + " (" + wanted + ")");
  Sha256 hash;
  std::string chunk(kChunk, '\0');
  while (const size_t got = file.read(chunk.data(), chunk.size())) hash.update(chunk.data(), got);
  const std::string got = hash.hex();
  if (got != row.sha256) corrupt(row.path + " has sha256:" + got + ", " + wanted);
}

void check_files(const Artifact& artifact, const std::vector<Row>& rows, const std::vector<Row>& layers) {
  if (rows != layers) corrupt("slipway.json and manifest.json of " + artifact.digest + " list different files");
  std::vector<std::string> named{artifact.entry};
  if (artifact.golden) named.insert(named.end(), {artifact.golden->inputs, artifact.golden->outputs});
  for (const std::string& name : named) {
    const bool listed = std::any_of(rows.begin(), rows.end(), [&](const Row& row) { return row.path == name; });
    if (!name.empty() && !listed) corrupt("slipway.json names " + name + ", which is not among the files");
  }
  for (const Row& row : rows) check_file(artifact.directory, row);
}

element parsed(simdjson::dom::parser& parser, const std::string& name, const std::string& data) {
  element value;
  const auto error = parser.parse(data).get(value);
  if (error) corrupt(name + " is not JSON: " + simdjson::error_message(error));
  if (!value.is_object()) corrupt(name + " is not a JSON object");
  return value;
}

}  // namespace

Artifact open_artifact(const fs::path& directory, const std::string& wanted) {
  if (!fs::is_regular_file(directory / "manifest.json")) throw Failure("ArtifactNotFound", "there is no manifest.json in " + directory.string());
  const std::string manifest_text = read_small(directory, "manifest.json");
  const std::string digest = "sha256:" + sha256(manifest_text);
  if (!wanted.empty() && digest != wanted) corrupt("manifest.json has " + digest + ", wanted " + wanted);
  simdjson::dom::parser manifest_parser, config_parser;
  const element manifest = parsed(manifest_parser, "manifest.json", manifest_text);
  const std::string config_text = read_small(directory, "slipway.json");
  const std::string got = "sha256:" + sha256(config_text);
  std::string_view config_digest;
  if (manifest["config"]["digest"].get(config_digest) != simdjson::SUCCESS || got != config_digest)
    corrupt("slipway.json has " + got + ", the manifest wants " + std::string(config_digest));
  const element config = parsed(config_parser, "slipway.json", config_text);
  try {
    Artifact artifact = described(directory, digest, config);
    check_files(artifact, config_files(config), manifest_files(manifest));
    return artifact;
  } catch (const Failure&) {
    throw;
  } catch (const std::exception& error) {
    corrupt("slipway.json or manifest.json of " + digest + " is malformed: " + error.what());
  }
}

}  // namespace slipway
