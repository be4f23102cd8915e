// A stand-in for NCCL: the functions that the program uses, between processes of one host, on streams
// of the stand-in driver. A message is a file in the folder FAKE_NCCL_FOLDER, written beside and
// renamed. Sending and receiving are work on a stream, so they run as late as the driver's rules allow,
// and each adds a line to the driver's log as it runs. tests/it/kernels_common builds it as a shared
// library.
//
// FAKE_NCCL_FAIL=call:number:error lets the call with that number (from 1) of a function fail with an
// error code; "async" is not a function but the messages as they run, whose error
// ncclCommGetAsyncError then reports, or a signal to the process, as a negative number. FAKE_NCCL_RANK limits it to one rank. FAKE_NCCL_VERSION (22105)
// is the version that it states.
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

namespace {

enum Result { OK = 0, UNHANDLED_CUDA = 1, SYSTEM = 2, INTERNAL = 3, ARGUMENT = 4, USAGE = 5, REMOTE = 6 };

struct Id {
    char bytes[128];
};

struct Communicator {
    std::string id;
    int rank, ranks;
    std::atomic<bool> aborted{false};
    std::atomic<int> error{OK};
    std::map<int, long> sent = {}, received = {};
};

// One message of a group.
struct Transfer {
    Communicator* communicator;
    bool sends;
    char* at;
    size_t values;
    int peer;
    void* stream;
    long number;
};

using Enqueue = void (*)(void*, bool (*)(void*), void*);
using Note = void (*)(const char*);

// A function of the stand-in driver, which the program has loaded.
template <typename F>
F of_driver(const char* name) {
    static void* driver = dlopen("libcuda.so", RTLD_NOW);
    F found = driver ? reinterpret_cast<F>(dlsym(driver, name)) : nullptr;
    if (!found) {
        std::fprintf(stderr, "the stand-in for NCCL needs the stand-in driver\n");
        std::exit(3);
    }
    return found;
}

int own_rank = -1;
int fails(const char* call) {
    static std::map<std::string, int> calls;
    const char *wanted = std::getenv("FAKE_NCCL_FAIL"), *rank = std::getenv("FAKE_NCCL_RANK");
    if (!wanted || (rank && std::atoi(rank) != own_rank)) return OK;
    std::string text = wanted;
    size_t first = text.find(':'), second = text.find(':', first + 1);
    if (text.substr(0, first) != call || ++calls[call] != std::atoi(text.c_str() + first + 1)) return OK;
    return std::atoi(text.c_str() + second + 1);
}
#define MAY_FAIL(call) \
    if (int error = fails(call)) return error

std::string folder() {
    const char* name = std::getenv("FAKE_NCCL_FOLDER");
    return name ? name : ".";
}
std::string name_of(const Transfer& t) {
    int from = t.sends ? t.communicator->rank : t.peer, to = t.sends ? t.peer : t.communicator->rank;
    return folder() + "/" + t.communicator->id + "-" + std::to_string(from) + "-" + std::to_string(to) + "-" + std::to_string(t.number);
}
void put(const std::string& name, const char* bytes, size_t length) {
    std::string beside = name + ".partial";
    FILE* file = std::fopen(beside.c_str(), "wb");
    if (!file || std::fwrite(bytes, 1, length, file) != length || std::fclose(file) || std::rename(beside.c_str(), name.c_str())) {
        std::perror(name.c_str());
        std::exit(3);
    }
}

// Runs a message; false while it has not arrived.
bool transfer(void* argument) {
    Transfer* t = static_cast<Transfer*>(argument);
    Communicator* c = t->communicator;
    if (!c->aborted && c->error == OK) {
        if (t->sends) {
            if (int error = fails("async")) {
                if (error < 0) raise(-error);
                c->error = error < 0 ? 0 : error;
                return false;
            }
            put(name_of(*t), t->at, t->values * 4);
        } else {
            FILE* file = std::fopen(name_of(*t).c_str(), "rb");
            if (!file) return false;
            std::vector<char> bytes(t->values * 4 + 1);
            size_t read = std::fread(bytes.data(), 1, bytes.size(), file);
            std::fclose(file);
            if (read != t->values * 4) {
                std::fprintf(stderr, "rank %d receives %zu bytes of rank %d and expects %zu\n", c->rank, read, t->peer, t->values * 4);
                std::exit(3);
            }
            std::memcpy(t->at, bytes.data(), read);
            std::remove(name_of(*t).c_str());
        }
        std::string line = (t->sends ? "send to " : "receive from ") + std::to_string(t->peer);
        of_driver<Note>("paragon_note")(line.c_str());
    } else if (!c->aborted) {
        return false;  // after an error, messages wait until the communicator is aborted
    }
    delete t;
    return true;
}

int depth = 0;
std::vector<Transfer*> group;

int add(bool sends, void* at, size_t values, int type, int peer, Communicator* c, void* stream) {
    if (type != 7 || !c || peer < 0 || peer >= c->ranks || peer == c->rank || !depth) return ARGUMENT;
    long number = (sends ? c->sent : c->received)[peer]++;
    group.push_back(new Transfer{c, sends, static_cast<char*>(at), values, peer, stream, number});
    return OK;
}

}  // namespace

#define CALL extern "C" __attribute__((visibility("default")))

CALL int ncclGetVersion(int* version) {
    const char* own = std::getenv("FAKE_NCCL_VERSION");
    *version = own ? std::atoi(own) : 22105;
    return OK;
}
CALL int ncclGetUniqueId(Id* id) {
    MAY_FAIL("ncclGetUniqueId");
    std::memset(id, 0, sizeof *id);
    std::snprintf(id->bytes, sizeof id->bytes, "nccl-%d", getpid());
    id->bytes[127] = 7;  // all 128 bytes travel
    return OK;
}
// Returns when all ranks have called it.
CALL int ncclCommInitRank(Communicator** out, int ranks, Id id, int rank) {
    own_rank = rank;
    MAY_FAIL("ncclCommInitRank");
    if (id.bytes[127] != 7) return ARGUMENT;
    auto joined = [&](int which) { return folder() + "/" + id.bytes + "-joined-" + std::to_string(which); };
    put(joined(rank), "", 0);
    for (int other = 0; other < ranks; other++)
        while (access(joined(other).c_str(), F_OK)) usleep(1000);
    *out = new Communicator{id.bytes, rank, ranks};
    of_driver<Note>("paragon_note")("joined");
    return OK;
}
CALL int ncclGroupStart() {
    MAY_FAIL("ncclGroupStart");
    depth++;
    return OK;
}
CALL int ncclSend(const void* at, size_t values, int type, int peer, Communicator* c, void* stream) {
    MAY_FAIL("ncclSend");
    return add(true, const_cast<void*>(at), values, type, peer, c, stream);
}
CALL int ncclRecv(void* at, size_t values, int type, int peer, Communicator* c, void* stream) {
    MAY_FAIL("ncclRecv");
    return add(false, at, values, type, peer, c, stream);
}
// All messages of a group go on together, so none waits for one that was named before it: sends first.
CALL int ncclGroupEnd() {
    MAY_FAIL("ncclGroupEnd");
    if (!depth || --depth) return depth ? OK : USAGE;
    std::vector<Transfer*> all;
    all.swap(group);
    for (bool sends : {true, false})
        for (Transfer* t : all)
            if (t->sends == sends) of_driver<Enqueue>("paragon_enqueue")(t->stream, transfer, t);
    return OK;
}
CALL int ncclCommGetAsyncError(Communicator* c, int* error) {
    *error = c->error;
    return OK;
}
CALL int ncclCommAbort(Communicator* c) {
    c->aborted = true;  // messages on a stream still look at it
    of_driver<Note>("paragon_note")("aborted");
    return OK;
}
CALL int ncclCommDestroy(Communicator* c) {
    c->aborted = true;
    of_driver<Note>("paragon_note")("destroyed");
    return OK;
}
CALL const char* ncclGetErrorString(int error) {
    return error == SYSTEM     ? "unhandled system error"
           : error == ARGUMENT ? "invalid argument"
           : error == USAGE    ? "invalid usage"
           : error == REMOTE   ? "remote process exited or there was a network error"
                               : "internal error";
}
