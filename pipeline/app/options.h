// Everything the user can ask for, as plain values. Names and help texts are in command_line.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "optim/lr_schedule.h"
#include "optim/optimizer.h"
#include "pipeline/schedule.h"

namespace pipeoptim::app {

struct Options {
  std::string model = "cnn";
  std::vector<std::int64_t> hidden = {256, 128, 64};
  std::int64_t width = 16;
  double dropout = 0;
  std::int64_t layers = 4, features = 256, heads = 8;
  std::int64_t sequence_length = 128, vocabulary = 20000;
  std::string data = "fashion-mnist";
  std::string data_dir;  // folder, of text also the file; empty: where the distribution's package puts it
  std::int64_t limit_train = 0, limit_test = 0;
  bool no_shuffle = false, no_augment = false;
  std::uint64_t seed = 0;

  int stages = 4;
  std::vector<int> cuts;  // first layer of stages 1, 2, ...; empty: balanced by cost
  std::string method = "pipeoptim", horizon = "exact", predictor = "linear";
  int micro_batches = 1;
  int chunks = 0, delay = 0, activation_limit = 0;
  std::vector<double> costs = {1, 1, 1};  // forward, input gradient, weight gradient
  std::int64_t pipemare_anneal = -1;
  double pipemare_decay = 0.135;
  int threads = 1;
  std::string cpu_bind = "none";
  std::string device = "auto";
  int devices = 0;  // CUDA devices; 0: all, at most one a stage
  std::string matrix_precision = "fp32", row_kernels = "own";
  bool cuda_graph = false;

  static constexpr int kNoRank = -1;
  int rank = kNoRank;  // of several processes; without it, and with a size of 0: as the environment says
  int world_size = 0;
  std::string rendezvous;  // empty: as the environment says
  int rendezvous_timeout = 60;

  OptimizerConfig optimizer;
  LrScheduleConfig lr;
  bool lr_given = false;
  double label_smoothing = 0;

  std::int64_t batch_size = 128;
  std::int64_t epochs = 4;
  std::int64_t steps = 0;  // 0: whole epochs
  std::int64_t eval_every = 1;

  // simulate
  std::vector<double> links = {0, 0};  // activation, gradient
  double update_cost = 0;
  std::int64_t mini_batches = 1;
  std::string costs_from;
  // compare
  std::string methods = "sequential,pipedream,pipeoptim";
  int seeds = 3;
  double target_loss = 0;

  std::string init, save, log, version_trace, trace, run_dir;
  bool overwrite = false;

  std::string config;
  std::string color = "auto";
  bool dry_run = false, quiet = false, json = false;
};

// Throws std::invalid_argument, naming the option, for an unknown name (with the nearest one) or a number
// that can never fit. What depends on the model or the data is checked where it is known.
void validate(const Options& options);
void validate_schedule(const Options& options);  // what does not concern data or optimizer

// Fills in the hyper-parameters that were not given, so that a run's config tells what it ran with.
void settle_optimizer(Options& options);

// Stages of the model: several on each of --stages workers where the method wants that.
int model_stages(const Options& options);

// All of it but the number of mini-batches.
ScheduleRequest schedule_request(const Options& options);

// The optimizer that trains: the method's own where it has one.
std::string rule_name(const Options& options);

HorizonPolicy horizon_policy(const std::string& name);
Predictor predictor(const std::string& name);

const std::vector<std::string>& horizon_names();
const std::vector<std::string>& predictor_names();

}  // namespace pipeoptim::app
