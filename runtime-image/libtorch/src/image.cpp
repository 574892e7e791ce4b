#include "image.hpp"

#include <csetjmp>
#include <cstdio>

#include <jpeglib.h>
#include <png.h>

#include <algorithm>
#include <cmath>
#include <cstring>

namespace slipway {

namespace {

constexpr int64_t kMaxPixels = 64 << 20;

void check_size(int64_t width, int64_t height) {
  if (width * height > kMaxPixels)
    throw BadRequest("the image has " + std::to_string(width) + " x " + std::to_string(height) + " pixels; at most " + std::to_string(kMaxPixels) + " are read");
}

uint8_t luma(const uint8_t* rgb) { return static_cast<uint8_t>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16); }  // Pillow's

Picture with_channels(Picture picture, int channels) {
  if (picture.channels == channels) return picture;
  Picture out{picture.width, picture.height, channels, {}};
  const size_t count = static_cast<size_t>(picture.width) * static_cast<size_t>(picture.height);
  out.pixels.resize(count * static_cast<size_t>(channels));
  for (size_t i = 0; i < count; ++i) {
    if (channels == 1) out.pixels[i] = luma(&picture.pixels[i * 3]);
    else std::fill_n(&out.pixels[i * 3], 3, picture.pixels[i]);
  }
  return out;
}

// --- PNG -------------------------------------------------------------------------------------------------------------------------------

// Transparency is dropped, not blended, as Pillow's convert does.
Picture decode_png(std::string_view file) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (!png_image_begin_read_from_memory(&image, file.data(), file.size())) throw BadRequest(std::string("the image cannot be read: ") + image.message);
  const bool color = image.format & PNG_FORMAT_FLAG_COLOR;
  try {
    check_size(image.width, image.height);
  } catch (...) {
    png_image_free(&image);
    throw;
  }
  image.format = color ? PNG_FORMAT_RGBA : PNG_FORMAT_GA;
  const size_t count = static_cast<size_t>(image.width) * image.height, channels = color ? 3 : 1;
  std::vector<uint8_t> raw(count * (channels + 1));
  if (!png_image_finish_read(&image, nullptr, raw.data(), 0, nullptr)) throw BadRequest(std::string("the image cannot be read: ") + image.message);
  Picture picture{static_cast<int>(image.width), static_cast<int>(image.height), static_cast<int>(channels), std::vector<uint8_t>(count * channels)};
  for (size_t i = 0; i < count; ++i) std::memcpy(&picture.pixels[i * channels], &raw[i * (channels + 1)], channels);
  return picture;
}

// --- JPEG ------------------------------------------------------------------------------------------------------------------------------

struct JpegErrors {
  jpeg_error_mgr manager;
  std::jmp_buf jump;
  char text[JMSG_LENGTH_MAX];
};

[[noreturn]] void jpeg_failed(j_common_ptr info) {
  auto* errors = reinterpret_cast<JpegErrors*>(info->err);
  info->err->format_message(info, errors->text);
  std::longjmp(errors->jump, 1);
}

// The orientation of an EXIF segment, 1 to 8; 1 when there is none.
int orientation_of(const uint8_t* data, size_t size) {
  if (size < 14 || std::memcmp(data, "Exif\0\0", 6) != 0) return 1;
  data += 6, size -= 6;
  const bool big = data[0] == 'M';
  const auto u16 = [&](size_t at) { return at + 2 > size ? 0U : big ? static_cast<unsigned>(data[at] << 8 | data[at + 1]) : static_cast<unsigned>(data[at + 1] << 8 | data[at]); };
  const auto u32 = [&](size_t at) { return big ? static_cast<uint64_t>(u16(at)) << 16 | u16(at + 2) : static_cast<uint64_t>(u16(at + 2)) << 16 | u16(at); };
  const size_t directory = u32(4);
  if (directory > size) return 1;
  for (unsigned i = 0; i < u16(directory); ++i) {
    const size_t entry = directory + 2 + 12 * size_t{i};
    if (entry + 12 > size) return 1;
    if (u16(entry) == 0x0112) return u16(entry + 8) >= 1 && u16(entry + 8) <= 8 ? static_cast<int>(u16(entry + 8)) : 1;
  }
  return 1;
}

Picture upright(const Picture& in, int orientation) {
  if (orientation == 1) return in;
  const bool turned = orientation >= 5;
  Picture out{turned ? in.height : in.width, turned ? in.width : in.height, in.channels, std::vector<uint8_t>(in.pixels.size())};
  const auto channels = static_cast<size_t>(in.channels);
  for (int y = 0; y < out.height; ++y)
    for (int x = 0; x < out.width; ++x) {
      int from_x = turned ? y : x, from_y = turned ? x : y;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) from_x = in.width - 1 - from_x;
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) from_y = in.height - 1 - from_y;
      const size_t to = static_cast<size_t>(y) * static_cast<size_t>(out.width) + static_cast<size_t>(x);
      const size_t from = static_cast<size_t>(from_y) * static_cast<size_t>(in.width) + static_cast<size_t>(from_x);
      std::memcpy(&out.pixels[to * channels], &in.pixels[from * channels], channels);
    }
  return out;
}

// The C part: no object with a destructor lives between setjmp and longjmp. Returns false with `errors.text`; `limit` pixels at most.
bool read_jpeg(jpeg_decompress_struct& info, JpegErrors& errors, std::string_view file, Picture& picture, int& orientation) {
  if (setjmp(errors.jump)) return false;
  jpeg_mem_src(&info, reinterpret_cast<const unsigned char*>(file.data()), file.size());
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);
  jpeg_read_header(&info, TRUE);
  if (static_cast<int64_t>(info.image_width) * info.image_height > kMaxPixels) {
    std::snprintf(errors.text, sizeof errors.text, "it has %u x %u pixels", info.image_width, info.image_height);
    return false;
  }
  info.out_color_space = info.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
  for (auto* marker = info.marker_list; marker; marker = marker->next)
    if (orientation == 1) orientation = orientation_of(marker->data, marker->data_length);
  jpeg_start_decompress(&info);
  picture.width = static_cast<int>(info.output_width), picture.height = static_cast<int>(info.output_height), picture.channels = info.output_components;
  const size_t stride = static_cast<size_t>(info.output_width) * static_cast<size_t>(info.output_components);
  picture.pixels.resize(stride * info.output_height);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = &picture.pixels[stride * info.output_scanline];
    jpeg_read_scanlines(&info, &row, 1);
  }
  jpeg_finish_decompress(&info);
  return info.err->num_warnings == 0 || info.output_scanline == info.output_height;
}

Picture decode_jpeg(std::string_view file) {
  jpeg_decompress_struct info{};
  JpegErrors errors{};
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = jpeg_failed;
  errors.manager.emit_message = [](j_common_ptr which, int level) { which->err->num_warnings += level < 0; };
  jpeg_create_decompress(&info);
  Picture picture;
  int orientation = 1;
  const bool read = read_jpeg(info, errors, file, picture, orientation);
  jpeg_destroy_decompress(&info);
  if (!read) throw BadRequest(std::string("the image cannot be read: ") + errors.text);
  return upright(picture, orientation);
}

// --- resampling ------------------------------------------------------------------------------------------------------------------------

constexpr int kPrecision = 32 - 8 - 2;

struct Taps {
  int from = 0;
  std::vector<int32_t> weights;  // fixed point
};

std::vector<Taps> taps_for(int in, int out) {
  const double scale = static_cast<double>(in) / out, filter = std::max(scale, 1.0), support = filter;
  std::vector<Taps> taps(static_cast<size_t>(out));
  for (int i = 0; i < out; ++i) {
    const double center = (i + 0.5) * scale;
    const int from = std::max(static_cast<int>(center - support + 0.5), 0), to = std::min(static_cast<int>(center + support + 0.5), in);
    std::vector<double> weights;
    double sum = 0;
    for (int x = from; x < to; ++x) {
      weights.push_back(std::max(0.0, 1.0 - std::abs((x - center + 0.5) / filter)));
      sum += weights.back();
    }
    Taps& row = taps[static_cast<size_t>(i)];
    row.from = from;
    for (const double weight : weights) row.weights.push_back(static_cast<int32_t>(0.5 + (sum != 0 ? weight / sum : weight) * (1 << kPrecision)));
  }
  return taps;
}

uint8_t clipped(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kPrecision, 0, 255)); }

// One pass along one axis: `step` and `line` are distances in bytes between neighbours on it and between its lines.
void resample(const std::vector<uint8_t>& in, std::vector<uint8_t>& out, const std::vector<Taps>& taps, size_t lines, size_t in_line, size_t out_line, size_t step) {
  for (size_t line = 0; line < lines; ++line)
    for (size_t i = 0; i < taps.size(); ++i)
      for (size_t c = 0; c < (step ? step : 1); ++c) {
        int32_t sum = 1 << (kPrecision - 1);
        for (size_t k = 0; k < taps[i].weights.size(); ++k) sum += in[line * in_line + (static_cast<size_t>(taps[i].from) + k) * step + c] * taps[i].weights[k];
        out[line * out_line + i * step + c] = clipped(sum);
      }
}

float channel(const std::vector<double>& values, size_t c) { return static_cast<float>(values.size() == 1 ? values[0] : values[c]); }

// Writes one sample of float32.
void normalised(const Picture& picture, const ImageSpec& spec, float* out) {
  const auto channels = static_cast<size_t>(picture.channels), count = static_cast<size_t>(picture.width) * static_cast<size_t>(picture.height);
  const auto scale = static_cast<float>(spec.scale);
  for (size_t i = 0; i < count; ++i)
    for (size_t c = 0; c < channels; ++c)
      out[spec.layout == "NCHW" ? c * count + i : i * channels + c] = (static_cast<float>(picture.pixels[i * channels + c]) * scale - channel(spec.mean, c)) / channel(spec.std, c);
}

// float32 -> the input's type, as numpy casts.
Tensor cast(const std::vector<float>& values, Shape shape, DType dtype) {
  const size_t bytes = values.size() * info(dtype).size;
  auto memory = allocate(bytes);
  const auto fill = [&](auto example, auto convert) {
    using T = decltype(example);
    for (size_t i = 0; i < values.size(); ++i) reinterpret_cast<T*>(memory.get())[i] = static_cast<T>(convert(values[i]));
  };
  const auto same = [](float value) { return value; };
  const auto whole = [](float value) { return static_cast<int64_t>(std::clamp(value, -9e15F, 9e15F)); };
  switch (dtype) {
    case DType::Float32: fill(float{}, same); break;
    case DType::Float64: fill(double{}, same); break;
    case DType::Float16: fill(uint16_t{}, float_to_half); break;
    case DType::BFloat16: fill(uint16_t{}, float_to_bfloat); break;
    case DType::UInt8: fill(uint8_t{}, whole); break;
    case DType::Int8: fill(int8_t{}, whole); break;
    case DType::Int32: fill(int32_t{}, whole); break;
    case DType::Int64: fill(int64_t{}, whole); break;
    default: throw HttpError(415, "images cannot be turned into " + std::string(info(dtype).name) + "; send JSON");
  }
  const std::byte* data = memory.get();
  return {dtype, std::move(shape), data, bytes, std::move(memory)};
}

}  // namespace

Picture decode(std::string_view file, int channels) {
  if (file.starts_with("\x89PNG")) return with_channels(decode_png(file), channels);
  if (file.starts_with("\xFF\xD8")) return with_channels(decode_jpeg(file), channels);
  throw BadRequest("the image cannot be read: it is neither PNG nor JPEG");
}

Picture resized(const Picture& in, int width, int height) {
  if (in.width == width && in.height == height) return in;
  const auto channels = static_cast<size_t>(in.channels);
  Picture wide{width, in.height, in.channels, std::vector<uint8_t>(static_cast<size_t>(width) * static_cast<size_t>(in.height) * channels)};
  if (in.width == width) wide.pixels = in.pixels;
  else resample(in.pixels, wide.pixels, taps_for(in.width, width), static_cast<size_t>(in.height), static_cast<size_t>(in.width) * channels, static_cast<size_t>(width) * channels, channels);
  if (in.height == height) return wide;
  Picture out{width, height, in.channels, std::vector<uint8_t>(static_cast<size_t>(width) * static_cast<size_t>(height) * channels)};
  // Down the columns a whole row is one step.
  resample(wide.pixels, out.pixels, taps_for(in.height, height), 1, 0, 0, static_cast<size_t>(width) * channels);
  return out;
}

std::vector<Tensor> image_inputs(std::span<const std::string_view> files, const ImageSpec& spec, const TensorSpec& input) {
  const int channels = spec.mode == "L" ? 1 : 3;
  const size_t sample = static_cast<size_t>(channels) * static_cast<size_t>(spec.height) * static_cast<size_t>(spec.width);
  std::vector<float> values(sample * files.size());
  for (size_t i = 0; i < files.size(); ++i) normalised(resized(decode(files[i], channels), spec.width, spec.height), spec, &values[i * sample]);
  const auto count = static_cast<int64_t>(files.size());
  Shape shape = spec.layout == "NCHW" ? Shape{count, channels, spec.height, spec.width} : Shape{count, spec.height, spec.width, channels};
  return {cast(values, std::move(shape), input.dtype)};
}

}  // namespace slipway
