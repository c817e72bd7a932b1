// The four kinds of errors: std::invalid_argument (the caller's), std::logic_error (a broken invariant of
// ours), DeviceError (a vendor library or the machine refused) and DataError (bad data from outside).
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace pipeoptim {

// A call into a vendor library or the operating system failed. what() names the call, its status and the
// place.
class DeviceError : public std::runtime_error {
 public:
  DeviceError(const std::string& call, const std::string& status,
              std::source_location where = std::source_location::current())
      : std::runtime_error(call + ": " + status + " (" + where.file_name() + ":" +
                           std::to_string(where.line()) + ")") {}
};

// Bad data from outside (a file, a record, a weight): what() names the culprit. A run-time failure, not a
// usage error.
class DataError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace pipeoptim
