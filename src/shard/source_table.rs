//! The source table of a shard: the images that its records were cut from, as `shards/FORMAT.md`
//! defines it. Depends on `format` for integers. Promises that a table which passed
//! [`check_sources`] holds only names that are safe to print and to join to a folder.

pub use super::format::SOURCE_ENTRY_BYTES;
use super::format::{u32_at, u64_at};
use anyhow::{Context, Result, bail, ensure};

/// Longest image name in bytes: as long as the longest path that Linux accepts.
pub const MAX_NAME_BYTES: usize = 4096;
/// Bytes of name for which room is made in advance, a typical length.
const TYPICAL_NAME_BYTES: usize = 32;

/// One image that records of a shard were cut from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceEntry {
    /// Name inside the dataset, with `/` between folders.
    pub name: String,
    /// HR image width in pixels, before any cropping.
    pub width: u32,
    /// HR image height in pixels, before any cropping.
    pub height: u32,
    /// Size of the image file, or of the HR and the LQ file together, bytes.
    pub bytes: u64,
    /// CRC32 over the bytes of the image file, or of the HR file and then the LQ file.
    pub crc: u32,
}

/// Returns the bytes of a source table: fixed entries, then the names they point to.
pub fn encode_sources(sources: &[SourceEntry]) -> Vec<u8> {
    let mut table = Vec::with_capacity(sources.len() * (SOURCE_ENTRY_BYTES + TYPICAL_NAME_BYTES));
    let mut names = Vec::new();
    for s in sources {
        table.extend_from_slice(&(names.len() as u32).to_le_bytes());
        table.extend_from_slice(&(s.name.len() as u32).to_le_bytes());
        table.extend_from_slice(&s.width.to_le_bytes());
        table.extend_from_slice(&s.height.to_le_bytes());
        table.extend_from_slice(&s.bytes.to_le_bytes());
        table.extend_from_slice(&s.crc.to_le_bytes());
        table.extend_from_slice(&0u32.to_le_bytes());
        names.extend_from_slice(s.name.as_bytes());
    }
    table.extend_from_slice(&names);
    table
}

/// Reads source `i` of a table of `count` sources.
///
/// # Errors
/// A number out of range, a name outside the table or not UTF-8.
pub fn decode_source(table: &[u8], count: u64, i: u32) -> Result<SourceEntry> {
    let (name, b) = source_at(table, count, i)?;
    Ok(SourceEntry {
        name: name.to_string(),
        width: u32_at(b, 8),
        height: u32_at(b, 12),
        bytes: u64_at(b, 16),
        crc: u32_at(b, 24),
    })
}

/// Returns the name of source `i` and the bytes of its entry.
fn source_at(table: &[u8], count: u64, i: u32) -> Result<(&str, &[u8])> {
    ensure!(
        u64::from(i) < count,
        "source {i} is asked for; the shard has {count}"
    );
    let at = i as usize * SOURCE_ENTRY_BYTES;
    let names_at = count as usize * SOURCE_ENTRY_BYTES;
    ensure!(
        names_at <= table.len(),
        "the source table is too short for {count} sources"
    );
    let b = &table[at..at + SOURCE_ENTRY_BYTES];
    let (offset, length) = (u32_at(b, 0) as usize, u32_at(b, 4) as usize);
    ensure!(
        length <= MAX_NAME_BYTES,
        "the name of source {i} has {length} bytes; the most is {MAX_NAME_BYTES}"
    );
    let names = &table[names_at..];
    let Some(name) = names.get(offset..offset + length) else {
        bail!("the name of source {i} lies outside the source table");
    };
    let Ok(name) = std::str::from_utf8(name) else {
        bail!("the name of source {i} is not UTF-8")
    };
    Ok((name, b))
}

/// Refuses a name that cannot be that of a file below the folder of the data set. `paragon shard`
/// never writes such a name: printed, it could control the terminal; used as a path, it could lead
/// out of the folder.
///
/// # Errors
/// What is wrong with the name, without the name itself.
pub fn check_name(name: &str) -> Result<()> {
    ensure!(
        name.len() <= MAX_NAME_BYTES,
        "it has {} bytes; the most is {MAX_NAME_BYTES}",
        name.len()
    );
    ensure!(
        !name.chars().any(char::is_control),
        "it holds a control character"
    );
    ensure!(!name.starts_with('/'), "it begins with a slash");
    ensure!(
        !name.split('/').any(|part| matches!(part, "." | "..")),
        "it leads out of the data set (`.` or `..` between slashes)"
    );
    Ok(())
}

/// Checks every entry of a table of `count` sources.
///
/// # Errors
/// Those of [`decode_source`] and of [`check_name`], with the entry's number.
pub fn check_sources(table: &[u8], count: u64) -> Result<()> {
    for i in 0..u32::try_from(count).context("too many sources")? {
        let (name, _) = source_at(table, count, i)?;
        check_name(name).with_context(|| format!("the name of source {i} is refused"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: std::fmt::Debug>(r: Result<T>) -> String {
        format!("{:#}", r.unwrap_err())
    }

    #[test]
    fn sources_come_back() {
        let sources: Vec<_> = ["a.png", "", "ü/b.jpg"]
            .iter()
            .map(|n| SourceEntry {
                name: n.to_string(),
                width: 1,
                height: 2,
                bytes: 1 << 33,
                crc: 9,
            })
            .collect();
        let table = encode_sources(&sources);
        for (i, s) in sources.iter().enumerate() {
            assert_eq!(&decode_source(&table, 3, i as u32).unwrap(), s);
        }
        assert!(error(decode_source(&table, 3, 3)).contains("source 3"));
    }

    #[test]
    fn rejects_a_name_outside_the_table_or_not_utf8() {
        let one = [SourceEntry {
            name: "abc".into(),
            width: 1,
            height: 1,
            bytes: 1,
            crc: 1,
        }];
        let mut table = encode_sources(&one);
        table[4] = 4;
        assert!(error(decode_source(&table, 1, 0)).contains("outside"));
        let mut table = encode_sources(&one);
        table[SOURCE_ENTRY_BYTES] = 0xFF;
        assert!(error(decode_source(&table, 1, 0)).contains("UTF-8"));
        let mut table = encode_sources(&one);
        table[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(error(decode_source(&table, 1, 0)).contains("the most is"));
    }
}
