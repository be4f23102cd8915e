//! Numbers, sizes and switches as text. Depends on `text` only.

use crate::support::text::brief;

/// Reads a size in bytes: `1500`, `512M`, `2G`, `2GiB`. Units are powers of 1024.
///
/// # Errors
/// An unknown unit, text that is no number, or a size out of range.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match lower[digits.len()..]
        .trim_end_matches('b')
        .trim_end_matches('i')
    {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        other => {
            return Err(format!(
                "`{}` is no unit; use K, M, G or T, as in 512M",
                brief(other)
            ));
        }
    };
    let number: f64 = digits
        .trim()
        .parse()
        .map_err(|_| format!("`{}` is no size; write it as 512M or 2G", brief(text)))?;
    let value = number * (1u64 << shift) as f64;
    if !(0.0..9e18).contains(&value) {
        return Err(format!("`{}` is out of range", brief(text)));
    }
    Ok(value as u64)
}

/// Reads a whole number in every form that a file may use: `5000`, `5_000`, `5e3`, `5000.0`.
/// Nothing is rounded: `9007199254740993.0` gives exactly that number. `None` for a fraction, a
/// negative number, or one above 64 bits.
pub fn whole(text: &str) -> Option<u64> {
    let text = text.trim().replace('_', "");
    let text = text.strip_prefix('+').unwrap_or(&text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (before, after) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{before}{after}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let significant = digits.trim_end_matches('0');
    let zeros = digits.len() - significant.len();
    // the number is `significant` x 10^`power`
    let power = exponent
        .parse::<i64>()
        .ok()?
        .checked_add(zeros as i64)?
        .checked_sub(after.len() as i64)?;
    match significant.trim_start_matches('0') {
        "" => Some(0),
        _ if power < 0 => None,
        digits => digits
            .parse::<u64>()
            .ok()?
            .checked_mul(10u64.checked_pow(u32::try_from(power).ok()?)?),
    }
}

/// Reads true, yes, on, false, no and off, in any case.
pub fn boolean(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_written_as_floats_are_exact() {
        for (text, number) in [
            ("5e3", 5000),
            ("5E+3", 5000),
            ("1000.0", 1000),
            ("1000.", 1000),
            ("2.5e5", 250_000),
            ("0.05e3", 50),
            ("4000e-3", 4),
            ("1_0.0e1", 100),
            ("0e400", 0),
            ("9007199254740993.0", 9_007_199_254_740_993),
            ("1.8446744073709551615e19", u64::MAX),
        ] {
            assert_eq!(whole(text), Some(number), "{text}");
        }
        for text in [
            "5.5",
            "1e400",
            "1e-1",
            "-1",
            "1e20",
            "18446744073709551616",
            "",
            ".",
            "e3",
            "1e",
            "inf",
            "nan",
            "0x10",
            "5 3",
            "1e99999999999999999999",
        ] {
            assert_eq!(whole(text), None, "{text}");
        }
    }
}
