//! The LQ patch told from its HR patch: the mean over each `scale x scale` block is close to what any downscaling gives, so
//! that storing the difference costs far less than storing the LQ. Depends on nothing. Promises that `restore` undoes
//! `difference` bit for bit, whatever the pair looks like.

/// For every LQ pixel, calls `with(index, mean)` with the mean R, G, B of its block of the HR patch (rounded half up).
#[inline(always)]
fn block_means(hr: &[u8], lq_size: usize, scale: usize, mut with: impl FnMut(usize, [u8; 3])) {
    let stride = lq_size * scale * 3;
    let area = (scale * scale) as u32;
    let mut index = 0;
    for y in 0..lq_size {
        let rows = &hr[y * scale * stride..(y + 1) * scale * stride];
        if scale == 2 {
            let (top, bottom) = rows.split_at(stride);
            for (a, b) in top.chunks_exact(6).zip(bottom.chunks_exact(6)) {
                let mean = |c: usize| {
                    let sum = u16::from(a[c]) + u16::from(a[c + 3]) + u16::from(b[c]) + u16::from(b[c + 3]);
                    ((sum + 2) >> 2) as u8
                };
                with(index, [mean(0), mean(1), mean(2)]);
                index += 1;
            }
            continue;
        }
        for x in 0..lq_size {
            let mut sum = [0u32; 3];
            for row in rows.chunks_exact(stride) {
                for pixel in row[x * scale * 3..(x + 1) * scale * 3].chunks_exact(3) {
                    for (s, &v) in sum.iter_mut().zip(pixel) {
                        *s += u32::from(v);
                    }
                }
            }
            with(index, sum.map(|s| ((s + area / 2) / area) as u8));
            index += 1;
        }
    }
}

/// Planes of (green difference, blue - green, red - green) between the LQ and the means of the HR, modulo 256.
pub fn difference(lq: &[u8], hr: &[u8], lq_size: usize, scale: usize, planes: &mut [u8]) {
    let (green, rest) = planes.split_at_mut(lq_size * lq_size);
    let (blue, red) = rest.split_at_mut(lq_size * lq_size);
    block_means(hr, lq_size, scale, |i, mean| {
        let pixel = &lq[i * 3..i * 3 + 3];
        let d: [u8; 3] = std::array::from_fn(|c| pixel[c].wrapping_sub(mean[c]));
        green[i] = d[1];
        blue[i] = d[2].wrapping_sub(d[1]);
        red[i] = d[0].wrapping_sub(d[1]);
    });
}

/// The LQ whose [`difference`] from `hr` is `planes`.
pub fn restore(planes: &[u8], hr: &[u8], lq_size: usize, scale: usize, lq: &mut [u8]) {
    let count = lq_size * lq_size;
    let (green, blue, red) = (&planes[..count], &planes[count..2 * count], &planes[2 * count..3 * count]);
    block_means(hr, lq_size, scale, |i, mean| {
        let g = green[i];
        lq[i * 3] = mean[0].wrapping_add(red[i].wrapping_add(g));
        lq[i * 3 + 1] = mean[1].wrapping_add(g);
        lq[i * 3 + 2] = mean[2].wrapping_add(blue[i].wrapping_add(g));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn restore_undoes_difference(lq_size in 1usize..20, scale in 1usize..6, seed in any::<u64>()) {
            let mut rng = crate::rng::Rng::new(&[seed]);
            let mut noise = |n: usize| (0..n).map(|_| rng.next_u64() as u8).collect::<Vec<u8>>();
            let (lq, hr) = (noise(lq_size * lq_size * 3), noise(lq_size * lq_size * scale * scale * 3));
            let mut planes = vec![0; lq.len()];
            difference(&lq, &hr, lq_size, scale, &mut planes);
            let mut back = vec![0; lq.len()];
            restore(&planes, &hr, lq_size, scale, &mut back);
            prop_assert_eq!(back, lq);
        }
    }

    #[test]
    fn the_block_mean_itself_costs_nothing() {
        for scale in 1..5 {
            let (hr, lq) = (vec![77; 9 * scale * scale * 3], vec![77; 9 * 3]);
            let mut planes = vec![1; 27];
            difference(&lq, &hr, 3, scale, &mut planes);
            assert!(planes.iter().all(|&d| d == 0));
        }
    }
}
