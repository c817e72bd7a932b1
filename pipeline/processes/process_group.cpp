#include "pipeline/processes/process_group.h"

#include <cstring>
#include <exception>
#include <stdexcept>
#include <utility>

#include "kernels/runtime/error.h"
#include "pipeline/processes/rendezvous.h"
#include "pipeline/processes/watcher.h"

namespace pipeoptim {
namespace {

// In front of each piece of a collective call.
struct Header {
  std::uint64_t call = 0;  // counted, the same on all ranks
  std::uint64_t bytes = 0;
};

std::function<std::string(int)> or_default(std::function<std::string(int)> name) {
  if (name) return name;
  return [](int rank) { return "rank " + std::to_string(rank); };
}

}  // namespace

struct ProcessGroup::Impl {
  Impl(ProcessGroupOptions options, Connections connections)
      : identity(options.identity),
        name(or_default(std::move(options.name))),
        calls(std::move(connections.calls)),
        watcher(identity.rank, std::move(connections.alarms), name, std::move(options.stop_asked)) {}

  const Socket& socket(int rank) const { return calls[static_cast<std::size_t>(rank)]; }

  void send(int to, std::span<const std::byte> bytes) {
    const Header header{call, bytes.size()};
    exchange(to, [&](const std::function<void()>& waiting) {
      send_all(socket(to), &header, sizeof(header), waiting);
      send_all(socket(to), bytes.data(), bytes.size(), waiting);
    });
  }

  Bytes receive(int from) {
    Header header;
    Bytes bytes;
    exchange(from, [&](const std::function<void()>& waiting) {
      receive_all(socket(from), &header, sizeof(header), waiting);
      if (header.call != call) return;
      bytes.resize(header.bytes);
      receive_all(socket(from), bytes.data(), bytes.size(), waiting);
    });
    if (header.call != call) {
      throw std::logic_error(name(from) + " makes collective call " + std::to_string(header.call) + ", " +
                             name(identity.rank) + " " + std::to_string(call));
    }
    return bytes;
  }

  // What the watcher knows about a connection that ended says more than the connection does.
  template <typename Transfer>
  void exchange(int peer, const Transfer& transfer) {
    try {
      transfer([this] { throw_if_failed(); });
    } catch (const DeviceError& error) {
      for (int looks = 0; looks < 20; ++looks) {
        throw_if_failed();
        std::this_thread::sleep_for(std::chrono::milliseconds(25));
      }
      throw DeviceError("exchange with " + name(peer), error.what());
    }
  }

  void throw_if_failed() const {
    const std::optional<std::string> failure = watcher.failure();
    if (failure) throw DeviceError(name(identity.rank) + " has to end", *failure);
  }

  const ProcessIdentity identity;
  const std::function<std::string(int)> name;
  const int exceptions = std::uncaught_exceptions();
  std::vector<Socket> calls;
  std::uint64_t call = 0;
  Watcher watcher;
};

ProcessGroup::ProcessGroup(ProcessGroupOptions options) {
  Connections connections = meet(options.identity, options.place, options.time_limit);
  impl_ = std::make_unique<Impl>(std::move(options), std::move(connections));
}

ProcessGroup::~ProcessGroup() {
  if (std::uncaught_exceptions() > impl_->exceptions) fail("it ended early");
}

int ProcessGroup::rank() const { return impl_->identity.rank; }
int ProcessGroup::size() const { return impl_->identity.size; }
std::string ProcessGroup::name(int rank) const { return impl_->name(rank); }

std::vector<ProcessGroup::Bytes> ProcessGroup::gather(std::span<const std::byte> mine) {
  throw_if_failed();
  ++impl_->call;
  std::vector<Bytes> all;
  if (rank() != 0) {
    impl_->send(0, mine);
    return all;
  }
  all.emplace_back(mine.begin(), mine.end());
  for (int from = 1; from < size(); ++from) all.push_back(impl_->receive(from));
  return all;
}

std::vector<ProcessGroup::Bytes> ProcessGroup::all_gather(std::span<const std::byte> mine) {
  std::vector<Bytes> all = gather(mine);
  ++impl_->call;
  if (rank() != 0) {
    for (int of = 0; of < size(); ++of) all.push_back(impl_->receive(0));
    return all;
  }
  for (int to = 1; to < size(); ++to) {
    for (const Bytes& bytes : all) impl_->send(to, bytes);
  }
  return all;
}

void ProcessGroup::fail(const std::string& what) noexcept { impl_->watcher.fail(what); }
bool ProcessGroup::failed() const { return impl_->watcher.failure().has_value(); }
void ProcessGroup::throw_if_failed() const { impl_->throw_if_failed(); }
void ProcessGroup::request_stop() { impl_->watcher.request_stop(); }
bool ProcessGroup::stopping() const { return impl_->watcher.stopping(); }
bool ProcessGroup::admit(std::int64_t step, const std::function<void()>& waiting) {
  return impl_->watcher.admit(step, waiting);
}
void ProcessGroup::watch(Watched* watched) { impl_->watcher.watch(watched); }

}  // namespace pipeoptim
