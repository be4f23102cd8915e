//! One buffer that an operation touches: which, how, and how many of its bytes.

use crate::plan::BufferId;

/// One buffer that an operation touches, and how.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    /// The buffer, or the view of a slice's images in one.
    pub buffer: BufferId,
    /// The operation reads values that it did not write itself.
    pub read: bool,
    /// The operation writes it.
    pub write: bool,
    /// The bytes that the floor of a step counts for each direction.
    pub(in crate::plan) bytes: Counted,
}

/// Which bytes of an access the floor counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum Counted {
    /// The whole buffer; nothing for parameters and their gradients, whose buffer holds all layers
    /// (one layer's weights are a few KiB), nor for metrics and workspaces.
    ByClass,
    /// The whole buffer, whatever it holds.
    Whole,
    /// That many bytes.
    Bytes(u64),
}

impl Access {
    /// The same access, counted as that many bytes.
    pub(in crate::plan) fn moving(self, bytes: u64) -> Access {
        Access {
            bytes: Counted::Bytes(bytes),
            ..self
        }
    }

    /// The same access, counted as the whole buffer.
    pub(in crate::plan) fn whole(self) -> Access {
        Access {
            bytes: Counted::Whole,
            ..self
        }
    }
}

fn access(buffer: BufferId, read: bool, write: bool) -> Access {
    Access {
        buffer,
        read,
        write,
        bytes: Counted::ByClass,
    }
}

/// Reads `buffer`.
pub(in crate::plan) fn read(buffer: BufferId) -> Access {
    access(buffer, true, false)
}

/// Writes `buffer`.
pub(in crate::plan) fn write(buffer: BufferId) -> Access {
    access(buffer, false, true)
}

/// Reads and writes `buffer`.
pub(in crate::plan) fn update(buffer: BufferId) -> Access {
    access(buffer, true, true)
}

/// Writes `buffer`, or adds to what it holds.
pub(in crate::plan) fn write_or_add(buffer: BufferId, add: bool) -> Access {
    access(buffer, add, true)
}
