// Makes calls of the system fail, for the tests. Loaded by LD_PRELOAD; the variable PARAGON_FAULT
// chooses the calls:
//
//   PARAGON_FAULT=CALL:ERRNO:SKIP:COUNT:MARKER
//
// CALL is open, read, pread, stat or flock. Of the calls on paths that contain MARKER, the first SKIP
// succeed and the next COUNT (-1 = all) fail with ERRNO.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long seen;

// Returns the errno with which a call on a path must fail, or 0.
static int fault(const char *call, const char *path) {
    const char *spec = getenv("PARAGON_FAULT");
    char name[16];
    int number, start;
    long skip, count;
    if (!spec || sscanf(spec, "%15[^:]:%d:%ld:%ld:%n", name, &number, &skip, &count, &start) != 4) return 0;
    if (strcmp(name, call) != 0 || !strstr(path, spec + start)) return 0;
    long at = atomic_fetch_add(&seen, 1);
    return at >= skip && (count < 0 || at < skip + count) ? number : 0;
}

static int fault_of(const char *call, int fd) {
    if (!getenv("PARAGON_FAULT")) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int before = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length <= 0) return 0;
    path[length] = 0;
    return fault(call, path);
}

#define NEXT(name) static __typeof__(&name) next; if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define FAIL(number) do { int code = (number); if (code) { errno = code; return -1; } } while (0)
#define MODE(flags) int mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }

int open(const char *path, int flags, ...) { MODE(flags) NEXT(open); FAIL(fault("open", path)); return next(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) NEXT(open64); FAIL(fault("open", path)); return next(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) NEXT(openat); FAIL(fault("open", path)); return next(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) NEXT(openat64); FAIL(fault("open", path)); return next(at, path, flags, mode); }
ssize_t read(int fd, void *to, size_t n) { NEXT(read); FAIL(fault_of("read", fd)); return next(fd, to, n); }
ssize_t pread(int fd, void *to, size_t n, off_t at) { NEXT(pread); FAIL(fault_of("pread", fd)); return next(fd, to, n, at); }
ssize_t pread64(int fd, void *to, size_t n, off64_t at) { NEXT(pread64); FAIL(fault_of("pread", fd)); return next(fd, to, n, at); }
int statx(int at, const char *path, int flags, unsigned mask, struct statx *to) {
    NEXT(statx);
    if (path && *path) FAIL(fault("stat", path));
    return next(at, path, flags, mask, to);
}
int flock(int fd, int how) {
    static int (*next)(int, int);
    if (!next) next = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    FAIL(fault_of("flock", fd));
    return next(fd, how);
}
