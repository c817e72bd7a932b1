// Joins models and pipeline: what the options name becomes data, loaders, an engine and its weights.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "models/data/dataset.h"
#include "models/data/loader.h"
#include "pipeline/app/loader_source.h"
#include "pipeline/app/options.h"
#include "pipeline/engine.h"
#include "pipeline/processes/process_group.h"

namespace pipeoptim::app {

struct DataShape {
  std::int64_t height = 0, width = 0, channels = 0;  // of images
  int classes = 0;
  std::int64_t vocabulary = 0;  // of texts
};

// Of the named data set, without reading it where that is known. Throws std::invalid_argument where the model
// is made for another kind of data.
DataShape data_shape(const Options& options);

// "auto" takes a CUDA device where there is one. Throws DataError, saying what there is, when CUDA is asked
// for and missing.
Device choose_device(const std::string& name);

// How many devices the stages are divided over. Throws std::invalid_argument where --devices is more than
// there are stages, DataError where it is more than there are devices.
int choose_device_count(const Options& options, Device device);

// With `processes`, their part of it: the tensors that are here.
std::unique_ptr<Engine> make_engine(const Options& options, const DataShape& shape, Device device,
                                    bool trace = false, ProcessGroup* processes = nullptr);

// One split, cut to --limit-train or --limit-test.
std::shared_ptr<const Dataset> load_data(const Options& options, Split split);
// Random order and augmentation as asked; incomplete mini-batches are dropped.
Loader make_train_loader(const Options& options, std::shared_ptr<const Dataset> data, Device device);
// In the file's order, every record once.
Loader make_test_loader(const Options& options, std::shared_ptr<const Dataset> data, Device device);

// First values of every tensor that is here, from the seed.
void initialise(Engine& engine, std::uint64_t seed);
// Throws DataError, naming every tensor at fault, unless the file holds exactly the model's tensors.
void load_weights(Engine& engine, const std::string& path);
// Several processes: a call of all, whose tensors rank 0 writes.
void save_weights(const Engine& engine, const std::string& path, ProcessGroup* processes = nullptr);

}  // namespace pipeoptim::app
