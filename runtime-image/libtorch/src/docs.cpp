#include "docs.hpp"

#include <algorithm>

#include "json.hpp"

namespace slipway {

namespace {

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '&') out += "&amp;";
    else if (c == '"') out += "&quot;";
    else out += c;
  }
  return out;
}

// An infer request of zeros, for a batch of one.
std::string example(const std::vector<TensorSpec>& specs) {
  std::string out = "{\"inputs\":[";
  for (const TensorSpec& spec : specs) {
    Shape shape;
    int64_t count = 1;
    for (const Dim& dim : spec.shape) shape.push_back(dim.name.empty() ? dim.size : 1), count *= shape.back();
    if (out.back() == '}') out += ',';
    out += "{\"name\":" + json::quoted(spec.name) + ",\"datatype\":\"" + std::string(info(spec.dtype).wire) + "\",\"shape\":" + list_of(shape) + ",\"data\":[";
    for (int64_t i = 0; i < std::min<int64_t>(count, 4096); ++i) out += i ? ",0" : "0";
    out += "]}";
  }
  return out + "]}";
}

std::string rows(const char* what, const std::vector<TensorSpec>& specs) {
  std::string out;
  for (const TensorSpec& spec : specs) out += std::string("<tr><td>") + what + "<td>" + escaped(spec.name) + "<td>" + escaped(describe(spec)) + "\n";
  return out;
}

std::string post(const std::string& path, const std::string& summary, const std::string& content) {
  return json::quoted(path) + R"(:{"post":{"summary":)" + json::quoted(summary) + R"(,"requestBody":{"required":true,"content":{)" + content +
         R"(}},"responses":{"200":{"description":"the answer"},"400":{"description":"the request does not fit the model"},"413":{"description":"the body is too large"},)" +
         R"("429":{"description":"the queue is full; see Retry-After"},"500":{"description":"the model failed"},"503":{"description":"still loading"}}}})";
}

std::string get(const std::string& path, const std::string& summary) {
  return json::quoted(path) + R"(:{"get":{"summary":)" + json::quoted(summary) + R"(,"responses":{"200":{"description":"the answer"},"503":{"description":"not ready"}}}})";
}

}  // namespace

std::string docs_page(const Model& model, const std::string& name, const std::string& revision) {
  const std::string base = "/v2/models/" + escaped(name);
  const Artifact& artifact = model.artifact;
  std::string page = "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>" + escaped(name) + " · Slipway</title>\n";
  page += "<style>body{font:16px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}td{padding-right:2em}textarea{width:100%}</style></head><body>\n";
  page += "<h1>" + escaped(name) + "</h1><p>Revision " + escaped(revision) + ", " + escaped(artifact.format) + " " + escaped(artifact.precision) + ", artifact <code>" +
          escaped(artifact.digest) + "</code>, by LibTorch " + torch_version() + "</p>\n<table>" + rows("input", artifact.inputs) + rows("output", artifact.outputs) + "</table>\n";
  if (!model.labels.empty()) {
    page += "<p>Classes:";
    for (const std::string& label : model.labels) page += " " + escaped(label);
    page += "</p>\n";
  }
  page += "<h2>POST " + base + "/infer</h2><p>Open Inference Protocol v2: JSON, or with the binary tensor extension.</p>\n<textarea id=\"body\" rows=\"6\">" +
          escaped(example(artifact.inputs)) + "</textarea>\n<button onclick=\"ask('" + base + "/infer', document.getElementById('body').value)\">Send</button><pre id=\"answer\"></pre>\n";
  page += "<h2>Also</h2><ul><li>POST " + base + "/predict with <code>{\"instances\": [...]}</code>" + (artifact.image ? " or an image upload" : "") + "\n";
  for (const std::string& path : {base, std::string("/v2"), std::string("/v2/health/ready"), std::string("/v2/health/live"), std::string("/metrics"), std::string("/openapi.json")})
    page += "<li><a href=\"" + path + "\">" + path + "</a>\n";
  return page + "</ul><script>async function ask(path, body) {\n  const answer = await fetch(path, {method: 'POST', body});\n" +
         "  document.getElementById('answer').textContent = answer.status + '\\n' + await answer.text();\n}</script></body></html>\n";
}

std::string openapi_json(const Model& model, const std::string& name, const std::string& revision) {
  const std::string base = "/v2/models/" + name;
  const std::string body = "{\"schema\":{\"type\":\"object\"},\"example\":" + example(model.artifact.inputs) + "}";
  std::string plain = R"("application/json":{"schema":{"type":"object"}})";
  if (model.artifact.image)
    plain += R"(,"multipart/form-data":{"schema":{"type":"object","properties":{"image":{"type":"string","format":"binary"}}}})";
  return R"({"openapi":"3.1.0","info":{"title":)" + json::quoted(name) + R"(,"version":)" + json::quoted(revision) + R"(},"paths":{)" + get("/v2", "The server") + "," +
         get("/v2/health/live", "Whether the process works") + "," + get("/v2/health/ready", "Whether it may be asked") + "," + get(base, "The model's inputs and outputs") + "," +
         get(base + "/ready", "Whether the model may be asked") + "," + post(base + "/infer", "Open Inference Protocol v2", R"("application/json":)" + body + R"(,"application/octet-stream":{})") +
         "," + post(base + "/predict", "Classes with labels", plain) + "," + get("/metrics", "Prometheus metrics") + "}}";
}

}  // namespace slipway
