//! The augmentation codes of a batch: one byte a sample that says how its stored patch is flipped
//! and rotated for training. Pixels are never moved in memory; every reader of a slot goes through
//! [`source`]. Depends on nothing.

/// Mirror left-right, applied first.
pub const HFLIP: u8 = 1;
/// Mirror top-bottom, applied second.
pub const VFLIP: u8 = 2;
/// Swap rows and columns, applied last (with a flip: a quarter turn).
pub const TRANSPOSE: u8 = 4;

/// The (row, column) in the stored patch that pixel (row `y`, column `x`) of the augmented square
/// patch of side `size` is read from. The same code with `size * scale` maps the HR patch, so the
/// pair stays aligned.
#[inline(always)]
pub fn source(code: u8, y: usize, x: usize, size: usize) -> (usize, usize) {
    let (row, column) = if code & TRANSPOSE != 0 {
        (x, y)
    } else {
        (y, x)
    };
    let row = if code & VFLIP != 0 {
        size - 1 - row
    } else {
        row
    };
    let column = if code & HFLIP != 0 {
        size - 1 - column
    } else {
        column
    };
    (row, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_act_as_flip_then_flip_then_transpose() {
        let n = 3;
        for code in 0..8u8 {
            // apply the operations one after another on an explicit image
            let mut picture: Vec<Vec<(usize, usize)>> =
                (0..n).map(|y| (0..n).map(|x| (y, x)).collect()).collect();
            if code & HFLIP != 0 {
                picture.iter_mut().for_each(|row| row.reverse());
            }
            if code & VFLIP != 0 {
                picture.reverse();
            }
            if code & TRANSPOSE != 0 {
                picture = (0..n)
                    .map(|y| (0..n).map(|x| picture[x][y]).collect())
                    .collect();
            }
            for (y, row) in picture.iter().enumerate() {
                for (x, &expected) in row.iter().enumerate() {
                    assert_eq!(source(code, y, x, n), expected, "code {code}");
                }
            }
        }
    }
}
