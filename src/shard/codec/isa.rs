//! Which instructions the codec's inner loops use, chosen when the program runs. Depends on nothing. Promises that every
//! choice gives the same bytes: tests run each of them against the plain form.

/// The forms of the inner loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust: the reference, and what other processors run.
    Plain,
    /// AVX2.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Isa {
    /// Every form this processor can run, best first.
    pub fn available() -> Vec<Isa> {
        let mut list = Vec::new();
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            list.push(Isa::Avx2);
        }
        list.push(Isa::Plain);
        list
    }

    /// The best form.
    pub fn detect() -> Isa {
        Isa::available()[0]
    }
}
