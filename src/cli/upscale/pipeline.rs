//! The images of a command, upscaled one after the other, or with a GPU by several threads at once:
//! each decodes an image, gives its tiles to the GPU in turn with the others, and encodes the result.
//! Depends on the planning. Promises that the images in progress take no more memory than is allowed,
//! and that an error that concerns one image does not stop the others.

use super::planning::Planned;
use super::{Done, Failed, Outcome, UpscaleError, tell, upscale_one};
use anyhow::Result;
use paragon::inference::upscale::Upscaler;
use paragon::support::budget::Budget;
use paragon::support::progress::Progress;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What all threads share.
pub struct Work<'a> {
    pub budget: &'a Budget,
    pub is_folder: bool,
    pub quiet: bool,
    pub progress: &'a Progress,
}

/// The images that nobody has begun, and the results so far, with the numbers of the images.
struct Queue {
    waiting: Vec<(usize, Planned)>,
    done: Vec<(usize, Done)>,
    failed: Vec<(usize, Failed)>,
    /// The error that ends the command.
    ended: Option<anyhow::Error>,
    /// Images that other threads had begun when it came, and that failed as well.
    given_up: usize,
}

impl Work<'_> {
    /// Upscales all images with a number of threads. The results are in the order of the images.
    ///
    /// # Errors
    /// That of a single image; those of a folder's images are in `outcome`.
    pub fn upscale_all(
        &self,
        upscaler: &mut Upscaler,
        planned: Vec<Planned>,
        threads: usize,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut waiting: Vec<(usize, Planned)> = planned.into_iter().enumerate().collect();
        waiting.reverse();
        let queue = Mutex::new(Queue {
            waiting,
            done: Vec::new(),
            failed: Vec::new(),
            ended: None,
            given_up: 0,
        });
        let stop = AtomicBool::new(false);
        if threads == 1 {
            self.work(upscaler, &queue, &stop);
        } else {
            let others = (1..threads).map(|_| upscaler.for_another_thread());
            let others = others.collect::<Result<Vec<Upscaler>>>()?;
            std::thread::scope(|scope| {
                for mut other in others {
                    let (queue, stop) = (&queue, &stop);
                    scope.spawn(move || self.work(&mut other, queue, stop));
                }
                self.work(upscaler, &queue, &stop);
            });
        }
        let mut queue = queue.into_inner().unwrap_or_else(PoisonError::into_inner);
        queue.done.sort_by_key(|(number, _)| *number);
        queue.failed.sort_by_key(|(number, _)| *number);
        outcome
            .done
            .extend(queue.done.into_iter().map(|(_, done)| done));
        let failed = queue.failed.into_iter().map(|(_, failed)| failed);
        outcome.failed.extend(failed);
        match queue.ended {
            Some(error) if !self.is_folder => return Err(error),
            Some(error) => outcome.stopped = Some((error, queue.waiting.len() + queue.given_up)),
            None => {}
        }
        Ok(())
    }

    /// Takes images from the queue until none is left or an error ends the command.
    fn work(&self, upscaler: &mut Upscaler, queue: &Mutex<Queue>, stop: &AtomicBool) {
        let lock =
            || -> MutexGuard<'_, Queue> { queue.lock().unwrap_or_else(PoisonError::into_inner) };
        while !stop.load(Ordering::Relaxed) {
            let next = lock().waiting.pop();
            let Some((number, planned)) = next else {
                return;
            };
            let result = upscale_one(
                upscaler,
                &planned,
                self.budget,
                (self.is_folder, self.quiet),
            );
            match result {
                Ok(done) => {
                    if !done.notes.is_empty() {
                        self.tell(&format!("{}: {}", done.input, done.notes.join(", ")));
                    }
                    lock().done.push((number, done));
                }
                Err(UpscaleError { error, ends_all }) if ends_all || !self.is_folder => {
                    stop.store(true, Ordering::Relaxed);
                    // the first error is the reason; the other threads may fail because of it
                    let mut queue = lock();
                    queue.given_up += usize::from(queue.ended.is_some());
                    queue.ended.get_or_insert(error);
                    return;
                }
                Err(UpscaleError { error, .. }) => {
                    let failed = Failed {
                        input: planned.job.input,
                        reason: format!("{error:#}"),
                    };
                    self.progress.warn(&format!("error: {}", failed.text()));
                    lock().failed.push((number, failed));
                }
            }
            self.progress.advance(1);
        }
    }

    fn tell(&self, text: &str) {
        if self.is_folder {
            self.progress.line(text);
        } else if !self.quiet {
            tell(text);
        }
    }
}
