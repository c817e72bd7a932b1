// `pipeoptim info`: devices, versions, and everything that has a name.
#include <fmt/format.h>
#include <toml++/toml.h>

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "kernels/runtime/device.h"
#include "kernels/runtime/instruction_set.h"
#include "kernels/runtime/names.h"
#include "kernels/runtime/placement.h"
#include "models/data/dataset.h"
#include "models/zoo.h"
#include "pipeline/app/app.h"
#include "pipeline/methods.h"

namespace pipeoptim::app {
namespace {

#if defined(PIPEOPTIM_WITH_CUDA)
constexpr bool kBuiltWithCuda = true;
#else
constexpr bool kBuiltWithCuda = false;
#endif

using Json = nlohmann::ordered_json;

std::vector<std::string> list(std::span<const std::string> names) { return {names.begin(), names.end()}; }

std::vector<std::string> devices() {
  std::vector<std::string> lines = {"cpu: " + describe(Device::host())};
  for (int ordinal = 0; ordinal < device_count(Backend::kCuda); ++ordinal) {
    const Device device = Device::cuda(ordinal);
    lines.push_back(to_string(device) + ": " + describe(device));
  }
  return lines;
}

std::vector<std::string> libraries() {
  return {fmt::format("CLI11 {}", CLI11_VERSION),
          fmt::format("fmt {}.{}.{}", FMT_VERSION / 10000, FMT_VERSION / 100 % 100, FMT_VERSION % 100),
          fmt::format("toml++ {}.{}.{}", TOML_LIB_MAJOR, TOML_LIB_MINOR, TOML_LIB_PATCH),
          fmt::format("nlohmann_json {}.{}.{}", NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR,
                      NLOHMANN_JSON_VERSION_PATCH)};
}

}  // namespace

ExitCode info(const Options& options) {
  const std::string chosen_set =
      to_string(instruction_set());  // refuses a wrong one before anything is printed
  if (options.json) {
    const Json all = {{"version", version()},
                      {"cuda", kBuiltWithCuda},
                      {"cores", usable_cores()},
                      {"cpu_bind", placement_library()},
                      {"instruction_set", chosen_set},
                      {"instruction_sets", usable_instruction_set_names()},
                      {"devices", devices()},
                      {"libraries", libraries()},
                      {"methods", method_names()},
                      {"horizons", horizon_names()},
                      {"predictors", predictor_names()},
                      {"optimizers", optimizer_names()},
                      {"lr_schedules", LrSchedule::kinds()},
                      {"models", list(model_names())},
                      {"data", list(dataset_names())}};
    fmt::print("{}\n", all.dump(2));
    return kSuccess;
  }
  fmt::print("pipeoptim {}, built {} CUDA by {}\n", version(), kBuiltWithCuda ? "with" : "without",
             __VERSION__);
  fmt::print("libraries     {}\n", join_names(libraries()));
  fmt::print("cores         {} usable\n", usable_cores());
  fmt::print("--cpu-bind    {}\n",
             placement_library().empty() ? "built without hwloc" : "by " + placement_library());
  fmt::print("instructions  {}, of {} (PIPEOPTIM_ISA chooses)\n", chosen_set,
             join_names(usable_instruction_set_names()));
  for (const std::string& device : devices()) fmt::print("device        {}\n", device);
  for (const std::string& name : method_names()) {
    fmt::print("method        {:<18}  {}\n", name, find_method(name).summary);
  }
  fmt::print("horizons      {}\n", join_names(horizon_names()));
  fmt::print("predictors    {}\n", join_names(predictor_names()));
  fmt::print("optimizers    {}\n", join_names(optimizer_names()));
  fmt::print("lr schedules  {}\n", join_names(LrSchedule::kinds()));
  fmt::print("models        {}\n", join_names(model_names()));
  fmt::print("data sets     {}\n", join_names(dataset_names()));
  return kSuccess;
}

}  // namespace pipeoptim::app
