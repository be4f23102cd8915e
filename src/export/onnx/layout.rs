//! The operators that move values without computing: shapes, cuts, pixel shuffle. Depends on the
//! interpreter's tensors and on the helpers of `operators`.

use super::interpret::{Attributes, Data};
use super::operators::{Inputs, axis_of, positions, strides};
use anyhow::{Result, bail, ensure};

pub(super) fn depth_to_space(x: &Inputs, attributes: &Attributes) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let s = attributes.int("blocksize", 1) as usize;
    let &[n, c, h, w] = dims else {
        bail!("no images: {dims:?}");
    };
    ensure!(
        attributes.text("mode") == "CRD" && c.is_multiple_of(s * s),
        "only pixel shuffle is known"
    );
    let colours = c / (s * s);
    // from [n, colours, s, s, h, w] to [n, colours, h, s, w, s]
    let order = [c * h * w, s * s * h * w, w, s * h * w, 1, h * w];
    let places = positions(&[n, colours, h, s, w, s], &order, 0);
    let out = places.iter().map(|&i| values[i]).collect();
    Ok(Data::floats(kind, vec![n, colours, h * s, w * s], out))
}

pub(super) fn resize(x: &Inputs, attributes: &Attributes) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let (&[n, c, h, w], &[1.0, 1.0, down, right]) = (dims, x.floats(2)?.2) else {
        bail!("only images are enlarged");
    };
    let modes = ["mode", "coordinate_transformation_mode", "nearest_mode"];
    let modes = modes.map(|name| attributes.text(name));
    ensure!(
        modes == ["nearest", "asymmetric", "floor"] && down == right && down.fract() == 0.0,
        "only nearest neighbour is known"
    );
    let s = down as usize;
    let places = positions(&[n * c, h, s, w, s], &[h * w, w, 0, 1, 0], 0);
    let out = places.iter().map(|&i| values[i]).collect();
    Ok(Data::floats(kind, vec![n, c, h * s, w * s], out))
}

pub(super) fn shape(x: &Inputs) -> Result<Data> {
    let dims = x.get(0)?.dims();
    Ok(Data::Ints {
        dims: vec![dims.len()],
        values: dims.iter().map(|&d| d as i64).collect(),
    })
}

pub(super) fn reshape(x: &Inputs) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let wanted = x.get(1)?.ints()?;
    let known: usize = wanted
        .iter()
        .filter(|&&d| d > 0)
        .map(|&d| d as usize)
        .product();
    let sides: Vec<usize> = wanted
        .iter()
        .map(|&d| match d {
            -1 => values.len() / known.max(1),
            d => d as usize,
        })
        .collect();
    ensure!(
        sides.iter().product::<usize>() == values.len(),
        "{dims:?} cannot become {wanted:?}"
    );
    let values = values.to_vec();
    Ok(Data::Floats {
        kind,
        dims: sides,
        values,
    })
}

pub(super) fn transpose(x: &Inputs, attributes: &Attributes) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let order = attributes.list("perm")?;
    ensure!(
        order.len() == dims.len() && order.iter().all(|&i| i < dims.len()),
        "{dims:?} cannot be ordered as {order:?}"
    );
    let own = strides(dims);
    let sides: Vec<usize> = order.iter().map(|&i| dims[i]).collect();
    let from: Vec<usize> = order.iter().map(|&i| own[i]).collect();
    let places = positions(&sides, &from, 0);
    let values = places.iter().map(|&i| values[i]).collect();
    Ok(Data::Floats {
        kind,
        dims: sides,
        values,
    })
}

pub(super) fn concat(x: &Inputs, attributes: &Attributes) -> Result<Data> {
    let first = x.get(0)?;
    let axis = axis_of(attributes.int("axis", 0), first.dims().len())?;
    let mut dims = first.dims().to_vec();
    let parts = (0..x.0.len()).map(|i| x.get(i));
    let parts = parts.collect::<Result<Vec<&Data>>>()?;
    dims[axis] = parts.iter().map(|part| part.dims()[axis]).sum();
    let before: usize = dims[..axis].iter().product();
    let each = |part: &Data| part.dims()[axis..].iter().product::<usize>();
    if let Data::Ints { .. } = first {
        let lists = parts.iter().map(|part| part.ints());
        let values = lists.collect::<Result<Vec<_>>>()?.concat();
        return Ok(Data::Ints { dims, values });
    }
    let (kind, _) = first.values()?;
    let mut values = Vec::with_capacity(dims.iter().product());
    for i in 0..before {
        for part in &parts {
            let (other, from) = part.values()?;
            ensure!(kind == other, "{kind:?} and {other:?} in one node");
            values.extend(&from[i * each(part)..][..each(part)]);
        }
    }
    Ok(Data::Floats { kind, dims, values })
}

/// A part of a tensor: along each axis from `start`, `side` places.
fn part(x: &Inputs, starts: &[usize], sides: &[usize]) -> Result<Data> {
    let data = x.get(0)?;
    let own = strides(data.dims());
    let first = starts
        .iter()
        .zip(&own)
        .map(|(start, stride)| start * stride);
    let places = positions(sides, &own, first.sum());
    let dims = sides.to_vec();
    Ok(match data {
        Data::Ints { values, .. } => Data::Ints {
            dims,
            values: places.iter().map(|&i| values[i]).collect(),
        },
        Data::Floats { kind, values, .. } => Data::Floats {
            kind: *kind,
            dims,
            values: places.iter().map(|&i| values[i]).collect(),
        },
    })
}

pub(super) fn split(x: &Inputs, attributes: &Attributes) -> Result<Vec<Data>> {
    let dims = x.get(0)?.dims();
    let axis = axis_of(attributes.int("axis", 0), dims.len())?;
    let (mut starts, mut sides) = (vec![0; dims.len()], dims.to_vec());
    let lengths = x.get(1)?.ints()?.iter();
    lengths
        .map(|&length| {
            sides[axis] = usize::try_from(length)?;
            ensure!(
                starts[axis] + sides[axis] <= dims[axis],
                "a part is too long"
            );
            let part = part(x, &starts, &sides)?;
            starts[axis] += sides[axis];
            Ok(part)
        })
        .collect()
}

pub(super) fn slice(x: &Inputs) -> Result<Data> {
    let dims = x.get(0)?.dims();
    let lists = [x.get(1)?.ints()?, x.get(2)?.ints()?, x.get(3)?.ints()?];
    let (mut starts, mut sides) = (vec![0; dims.len()], dims.to_vec());
    for ((&from, &to), &axis) in lists[0].iter().zip(lists[1]).zip(lists[2]) {
        let axis = axis_of(axis, dims.len())?;
        let side = dims[axis] as i64;
        let place = |at: i64| if at < 0 { at + side } else { at }.clamp(0, side);
        starts[axis] = place(from) as usize;
        sides[axis] = (place(to) - place(from)).max(0) as usize;
    }
    part(x, &starts, &sides)
}

/// Zeros around a tensor.
pub(super) fn pad(x: &Inputs) -> Result<Data> {
    let (kind, dims, values) = x.floats(0)?;
    let pads = x.get(1)?.ints()?;
    ensure!(pads.len() == 2 * dims.len(), "{dims:?} with pads {pads:?}");
    let pads = pads.iter().map(|&p| usize::try_from(p));
    let pads = pads.collect::<Result<Vec<usize>, _>>()?;
    let (before, after) = pads.split_at(dims.len());
    let sides: Vec<usize> = (0..dims.len())
        .map(|i| before[i] + dims[i] + after[i])
        .collect();
    let to = strides(&sides);
    let first: usize = before.iter().zip(&to).map(|(b, stride)| b * stride).sum();
    let mut out = vec![0.0; sides.iter().product()];
    let places = positions(dims, &to, first);
    places.iter().zip(values).for_each(|(&at, &v)| out[at] = v);
    Ok(Data::Floats {
        kind,
        dims: sides,
        values: out,
    })
}
