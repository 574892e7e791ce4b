// The engines that run a model. Only backend.cpp sees torch's headers, which take a minute to compile.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "artifact.hpp"

namespace slipway {

// A loaded model; `infer` may be called from several threads at once.
class Backend {
 public:
  virtual ~Backend() = default;
  // Tensors in the order of the signature -> outputs in its order. Throws std::exception, whatever the model threw.
  virtual std::vector<Tensor> infer(const std::vector<Tensor>& inputs) = 0;
  virtual std::string platform() const = 0;
};

// Loads TorchScript or an AOTInductor package. `threads`: CPU threads of one call; `lanes`: calls at the same time.
// Throws Failure ModelLoadFailed or SignatureMismatch.
std::unique_ptr<Backend> load_backend(const Artifact& artifact, int threads, int lanes);

// Called once by every thread that will infer: libgomp keeps its number of threads per calling thread.
void enter_inference_thread(int threads);

// Version of libtorch, for /v2 and the log.
std::string torch_version();

}  // namespace slipway
