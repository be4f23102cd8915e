//! What the operating system says of this process: memory that cannot be dropped, and the machine's size. Linux only; other
//! systems get `None`.

/// A number of kB from a line like `RssAnon:   123 kB`, in bytes.
fn kilobytes(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kb| kb * 1024)
}

/// Anonymous memory of this process in bytes: heap and stacks, without mapped files (whose pages the kernel may drop).
pub fn anonymous_memory() -> Option<u64> {
    kilobytes("/proc/self/status", "RssAnon")
}

/// Memory of the machine that programs could still take, bytes.
pub fn available_memory() -> Option<u64> {
    kilobytes("/proc/meminfo", "MemAvailable")
}
