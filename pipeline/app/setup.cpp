#include "pipeline/app/setup.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "kernels/runtime/error.h"
#include "kernels/runtime/names.h"
#include "layers/provider.h"
#include "layers/softmax_cross_entropy.h"
#include "models/partition.h"
#include "models/zoo.h"

namespace pipeoptim::app {
namespace {

Cuts choose_cuts(const Options& options, std::span<const NamedLayer> layers, const Shape& input) {
  const int stages = model_stages(options);
  if (stages > static_cast<int>(layers.size())) {
    const std::string what = stages == options.stages
                                 ? "--stages " + std::to_string(stages) + " is"
                                 : "--stages " + std::to_string(options.stages) + " with " +
                                       std::to_string(stages / options.stages) + " chunks each are";
    throw std::invalid_argument(what + " more than the " + std::to_string(layers.size()) + " layers of " +
                                options.model);
  }
  if (options.cuts.empty()) return balanced_cuts(layer_costs(layers, input), stages);
  return checked_cuts(options.cuts, layers.size());
}

bool augments(const Options& options) {
  return !options.no_augment && !options.no_shuffle && options.model != "mlp";
}

LoaderOptions loader_options(const Options& options, Device device) {
  LoaderOptions loader;
  loader.batch = options.batch_size;
  loader.seed = options.seed;
  loader.device = device;
  loader.depth = model_stages(options) + 4;  // the first stage holds one mini-batch a stage
  return loader;
}

Dataset read_data(const Options& options, Split split) {
  return load_dataset(options.data, options.data_dir, split,
                      {.sequence_length = options.sequence_length, .vocabulary = options.vocabulary});
}

void require_fitting_data(const Options& options) {
  const DataKind wanted = model_data(options.model), given = dataset_kind(options.data);
  if (wanted == given) return;
  std::vector<std::string> known;
  for (const std::string& name : dataset_names()) {
    if (dataset_kind(name) == wanted) known.push_back(name);
  }
  throw std::invalid_argument("--model " + options.model + " needs " + describe(wanted) + " (" +
                              join_names(known) + "), but --data " + options.data + " is " + describe(given));
}

ModelOptions model_options(const Options& options, const DataShape& shape) {
  ModelOptions model;
  model.image = {shape.height, shape.width, shape.channels};
  model.classes = shape.classes;
  model.hidden = options.hidden;
  model.width = options.width;
  model.dropout = options.dropout;
  model.layers = options.layers;
  model.features = options.features;
  model.heads = options.heads;
  model.sequence_length = options.sequence_length;
  model.vocabulary = shape.vocabulary;
  return model;
}

}  // namespace

DataShape data_shape(const Options& options) {
  require_fitting_data(options);
  if (options.data == "fashion-mnist" || options.data == "mnist" || options.data == "synthetic") {
    return {kMnistSide, kMnistSide, 1, 10};
  }
  if (options.data == "cifar10") return {32, 32, 3, 10};
  if (options.data == "imdb") return {.classes = 2, .vocabulary = options.vocabulary};
  const Dataset data = read_data(options, Split::kTest);
  return {data.height, data.width, data.channels, data.classes, data.vocabulary};
}

Device choose_device(const std::string& name) {
  if (name == "cpu") return Device::host();
  const int count = device_count(Backend::kCuda);
  if (name == "cuda" && count == 0) {
#if defined(PIPEOPTIM_WITH_CUDA)
    const std::string reason = "the driver shows none";
#else
    const std::string reason = "this pipeoptim was built without CUDA";
#endif
    throw DataError("--device cuda: 0 CUDA devices found (" + reason +
                    "); this machine has cpu: " + describe(Device::host()));
  }
  return count > 0 ? Device::cuda(0) : Device::host();
}

int choose_device_count(const Options& options, Device device) {
  const int count = device_count(device.backend);
  if (options.devices == 0) return std::min(count, options.stages);
  if (options.devices > options.stages) {
    throw std::invalid_argument("--devices " + std::to_string(options.devices) + " is more than the " +
                                std::to_string(options.stages) + " stages");
  }
  if (options.devices > count) {
    const std::string kind = device.backend == Backend::kCuda ? "CUDA device" : "host";
    throw DataError("--devices " + std::to_string(options.devices) + " is more than the " +
                    std::to_string(count) + " " + kind + (count == 1 ? "" : "s") + " of this machine");
  }
  return options.devices;
}

std::unique_ptr<Engine> make_engine(const Options& options, const DataShape& shape, Device device, bool trace,
                                    ProcessGroup* processes) {
  const ModelOptions model = model_options(options, shape);
  const Shape input = model_input(options.model, model, options.batch_size);
  std::vector<NamedLayer> layers = make_model(options.model, model);
  const Cuts cuts = choose_cuts(options, layers, input);
  EngineConfig config;
  config.device = device;
  config.processes = processes;
  config.devices = processes != nullptr ? 1 : choose_device_count(options, device);
  config.threads = options.threads;
  config.cpu_binding = options.cpu_bind == "auto" ? CpuBinding::kAuto : CpuBinding::kNone;
  config.method = options.method;
  config.horizon = horizon_policy(options.horizon);
  config.chunks = options.chunks;
  config.delay = options.delay;
  config.costs = {options.costs[0], options.costs[1], options.costs[2]};
  config.activation_limit = options.activation_limit;
  config.pipemare_decay = options.pipemare_decay;
  config.optimizer = options.optimizer;
  config.optimizer.predictor = predictor(options.predictor);
  config.microbatches_per_update = options.micro_batches;
  config.seed = options.seed;
  config.trace = trace;
  config.precision = matrix_precision(options.matrix_precision);
  config.row_kernels = row_kernels(options.row_kernels);
  const auto require_cuda = [&](bool asked, const std::string& flag) {
    if (!asked || device.backend == Backend::kCuda) return;
    throw std::invalid_argument(flag + " needs a CUDA device; this runs on " + to_string(device));
  };
  require_cuda(options.cuda_graph, "--cuda-graph");
  require_cuda(config.row_kernels == RowKernels::kCudnn, "--row-kernels cudnn");
  config.cuda_graph = options.cuda_graph;
  return std::make_unique<Engine>(std::move(config), split_layers(std::move(layers), cuts),
                                  std::make_unique<SoftmaxCrossEntropy>(options.label_smoothing), input);
}

std::shared_ptr<const Dataset> load_data(const Options& options, Split split) {
  auto data = std::make_shared<Dataset>(read_data(options, split));
  const std::int64_t limit = split == Split::kTrain ? options.limit_train : options.limit_test;
  if (limit > 0) keep_first(*data, limit);
  return data;
}

Loader make_train_loader(const Options& options, std::shared_ptr<const Dataset> data, Device device) {
  LoaderOptions loader = loader_options(options, device);
  loader.order = options.no_shuffle ? Order::kFile : Order::kShuffled;
  loader.augmentation = augments(options) ? Augmentation::kCropAndFlip : Augmentation::kNone;
  return Loader(std::move(data), loader);
}

Loader make_test_loader(const Options& options, std::shared_ptr<const Dataset> data, Device device) {
  LoaderOptions loader = loader_options(options, device);
  loader.remainder = Remainder::kPad;
  return Loader(std::move(data), loader);
}

}  // namespace pipeoptim::app
