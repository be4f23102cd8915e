//! What operations on single values of activations share: the values of a task's rows, parameters
//! of one value a channel, and how results are stored. Depends on tasks and vectors.

use super::arena::SharedPtr;
use super::operation::{MAX_CHANNELS, check_extent};
use super::simd::{LANES, Simd};
use super::tasks::{Bands, exceeds_cache};
use crate::plan::{Extent, ParamRange};
use anyhow::{Result, ensure};
use std::ops::Range;

/// Checks the sizes of an activation `[N, h, w, channels rounded up]`.
///
/// # Errors
/// The size that no kernel is written for.
pub fn check_activation(extent: Extent, channels: usize) -> Result<()> {
    ensure!(
        channels > 0 && channels <= MAX_CHANNELS,
        "{channels} channels: 1 to {MAX_CHANNELS} are supported"
    );
    check_extent(extent)
}

/// Checks that `stride` is the number of channels rounded up to whole vectors.
///
/// # Errors
/// If it is not.
pub fn check_stride(channels: usize, stride: usize) -> Result<()> {
    ensure!(
        stride == channels.next_multiple_of(LANES),
        "{channels} channels in a buffer of {stride}: {} are supported",
        channels.next_multiple_of(LANES)
    );
    Ok(())
}

/// Checks that a parameter has one value for each channel.
///
/// # Errors
/// If it has not.
pub fn check_per_channel(range: ParamRange, channels: usize) -> Result<()> {
    ensure!(
        range.len == channels,
        "a parameter of {} values for {channels} channels",
        range.len
    );
    Ok(())
}

/// The values of a task's rows in an activation `[N, h, w, stride]`; they are contiguous.
pub fn values_of(bands: Bands, extent: Extent, stride: usize, task: usize) -> Range<usize> {
    let (image, start, end) = bands.task(task);
    let at = |row: usize| (image * extent.h + row) * extent.w * stride;
    at(start)..at(end)
}

/// How a result reaches memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// It replaces what is there.
    Replace,
    /// It replaces what is there, and is stored past the caches.
    Stream,
    /// It is added to what is there.
    Add,
}

impl Store {
    /// For a buffer of `stride` channels, a multiple of 16, that is written, or added to if `add`
    /// is set.
    pub fn new(extent: Extent, stride: usize, add: bool) -> Store {
        match add {
            true => Store::Add,
            false if exceeds_cache(extent, stride) => Store::Stream,
            false => Store::Replace,
        }
    }

    /// Stores a vector.
    ///
    /// # Safety
    /// As [`Simd`]. 16 values can be read and written at `to`, which is a multiple of 64 for
    /// [`Store::Stream`]; the task then calls [`Simd::fence`] before it ends.
    #[inline(always)]
    pub unsafe fn put<S: Simd>(self, to: *mut f32, value: S::V) {
        // SAFETY: the caller guarantees the memory
        unsafe {
            match self {
                Store::Replace => S::store(to, value),
                Store::Stream => S::stream(to, value),
                Store::Add => S::store(to, S::add(S::load(to), value)),
            }
        }
    }
}

/// A buffer that an operation writes or adds to.
#[derive(Clone, Copy)]
pub struct Output {
    /// The buffer.
    pub values: SharedPtr<f32>,
    /// How results reach it.
    pub store: Store,
}

impl Output {
    /// Stores a vector at the buffer's value number `at`.
    ///
    /// # Safety
    /// As [`Store::put`] for the 16 values from `at` on.
    #[inline(always)]
    pub unsafe fn put<S: Simd>(&self, at: usize, value: S::V) {
        // SAFETY: the caller guarantees the memory
        unsafe { self.store.put::<S>(self.values.at(at), value) }
    }
}

/// A parameter of one value a channel, read in whole vectors: 0 in the channels that fill the last
/// vector.
pub struct PerChannel {
    values: SharedPtr<f32>,
    channels: usize,
    /// The values of the last vector, if the channels do not fill it.
    last: [f32; LANES],
}

impl PerChannel {
    /// The `channels` parameters from `values` on.
    ///
    /// # Safety
    /// The parameters can be read while the result lives, and nothing writes them.
    pub unsafe fn new(values: SharedPtr<f32>, channels: usize) -> PerChannel {
        let (mut last, rest) = ([0.0; LANES], channels % LANES);
        // SAFETY: the caller guarantees that the parameters can be read
        last[..rest].copy_from_slice(unsafe { values.view(channels - rest, rest) });
        PerChannel {
            values,
            channels,
            last,
        }
    }

    /// The vector from channel `lane` on, a multiple of 16 below the number of channels.
    ///
    /// # Safety
    /// As [`Simd`].
    #[inline(always)]
    pub unsafe fn at<S: Simd>(&self, lane: usize) -> S::V {
        // SAFETY: the vector's parameters exist, by the contract of `new`; `last` is a vector
        unsafe {
            if lane + LANES <= self.channels {
                S::load(self.values.at(lane))
            } else {
                S::load(self.last.as_ptr())
            }
        }
    }
}
