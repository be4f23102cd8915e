//! Looking at a finished set: what is in it, and whether every record is whole. Depends on `reader`. Promises to read only,
//! and to name shard, record and image of every damage.

use super::reader::ShardSet;
use crate::progress::Progress;
use anyhow::Result;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// What a set holds.
#[derive(Clone, Debug, Serialize)]
pub struct Info {
    /// Version of the paragon that wrote it.
    pub paragon: String,
    /// Identity of the content, hexadecimal.
    pub fingerprint: String,
    /// Pairs.
    pub pairs: u64,
    /// HR side over LQ side.
    pub scale: u32,
    /// LQ patch side, pixels.
    pub lq_size: u32,
    /// Distance of neighbouring patches in the LQ image, pixels.
    pub stride: u32,
    /// How the LQ was made.
    pub lq_recipe: String,
    /// Images found when the set was made.
    pub images: u64,
    /// Images that gave pairs.
    pub used: u64,
    /// Shard files.
    pub shards: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Bytes of all pairs as pixels.
    pub bytes_raw: u64,
    /// Pairs and stored bytes by codec.
    pub codecs: BTreeMap<&'static str, (u64, u64)>,
}

/// Gathers what the manifest and the indexes say.
pub fn info(set: &ShardSet) -> Result<Info> {
    let manifest = set.manifest();
    let geometry = set.geometry();
    let mut codecs = BTreeMap::new();
    for record in 0..set.len() {
        let (codec, bytes) = set.stored(record)?;
        let entry = codecs.entry(codec.name()).or_insert((0, 0));
        entry.0 += 1;
        entry.1 += u64::from(bytes);
    }
    Ok(Info {
        paragon: manifest.paragon.clone(),
        fingerprint: format!("{:016x}", set.fingerprint()),
        pairs: set.len(),
        scale: geometry.scale,
        lq_size: geometry.lq_size,
        stride: manifest.stride,
        lq_recipe: manifest.recipe_name.clone(),
        images: manifest.images,
        used: manifest.used,
        shards: manifest.shards.len() as u64,
        bytes: manifest.bytes(),
        bytes_raw: set.len() * (geometry.lq_bytes() + geometry.hr_bytes()) as u64,
        codecs,
    })
}

/// One record that cannot be read.
#[derive(Clone, Debug, Serialize)]
pub struct Damage {
    /// Number of the record in the set.
    pub record: u64,
    /// Shard, record, image and what is wrong, in words.
    pub error: String,
}

/// Reads and decodes every record on all threads of the current pool; the damaged ones, in order.
pub fn verify(set: &ShardSet, progress: &Progress) -> Result<Vec<Damage>> {
    let geometry = set.geometry();
    let room = || -> Result<_> { Ok((set.scratch()?, vec![0; geometry.lq_bytes()], vec![0; geometry.hr_bytes()])) };
    let check = |room: &mut Result<_>, record: u64| -> Result<Option<Damage>> {
        let (scratch, lq, hr): &mut (_, Vec<u8>, Vec<u8>) = match room {
            Ok(room) => room,
            Err(e) => anyhow::bail!("cannot set up a thread: {e:#}"),
        };
        let outcome = set.read(record, scratch, lq, hr);
        progress.advance(1);
        Ok(outcome.err().map(|e| Damage { record, error: format!("{e:#}") }))
    };
    let found: Result<Vec<Option<Damage>>> = (0..set.len()).into_par_iter().map_init(room, check).collect();
    Ok(found?.into_iter().flatten().collect())
}
