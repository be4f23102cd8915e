//! Makes checkpoints as `torch.save` writes them, from parts that a test can change: the pickle and
//! the zip archive. Depends on nothing. Checksums are 0, as PyTorch writes them when it is told to
//! compute none, so that a changed part is still read.

/// The operations of a pickle, appended one by one.
#[derive(Clone, Default)]
pub struct Pickle(pub Vec<u8>);

impl Pickle {
    /// The first operation: the protocol.
    pub fn new(protocol: u8) -> Pickle {
        Pickle(vec![0x80, protocol])
    }

    pub fn raw(mut self, bytes: &[u8]) -> Pickle {
        self.0.extend(bytes);
        self
    }

    pub fn text(self, text: &str) -> Pickle {
        self.raw(b"X")
            .raw(&(text.len() as u32).to_le_bytes())
            .raw(text.as_bytes())
    }

    pub fn whole(self, number: i64) -> Pickle {
        self.raw(&[0x8a, 8]).raw(&number.to_le_bytes())
    }

    /// A name, `module.name`.
    pub fn global(self, module: &str, name: &str) -> Pickle {
        self.raw(format!("c{module}\n{name}\n").as_bytes())
    }

    /// A tuple of numbers.
    pub fn sizes(self, sizes: &[i64]) -> Pickle {
        let all = sizes.iter().fold(self.raw(b"("), |p, &size| p.whole(size));
        all.raw(b"t")
    }

    /// A tensor: its storage (type, key, elements), offset, shape and strides.
    pub fn tensor(
        self,
        (kind, key, count): (&str, &str, i64),
        offset: i64,
        shape: &[i64],
        strides: &[i64],
    ) -> Pickle {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .raw(b"((")
            .text("storage")
            .global("torch", kind)
            .text(key)
            .text("cpu")
            .whole(count)
            .raw(b"tQ")
            .whole(offset)
            .sizes(shape)
            .sizes(strides)
            .raw(b"\x89")
            .global("collections", "OrderedDict")
            .raw(b")RtR")
    }

    /// The end.
    pub fn done(self) -> Vec<u8> {
        self.raw(b".").0
    }
}

/// The pickle and the storages of tensors with one value each: name, shape, value.
pub fn state_dict(list: &[(String, Vec<usize>, f32)]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut pickle = Pickle::new(2).raw(b"}(").text("params").raw(b"}(");
    let mut storages = Vec::new();
    for (i, (name, shape, value)) in list.iter().enumerate() {
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let count: i64 = shape.iter().product();
        let mut strides = vec![1; shape.len()];
        for axis in (1..shape.len()).rev() {
            strides[axis - 1] = strides[axis] * shape[axis];
        }
        let storage = ("FloatStorage", &*i.to_string(), count);
        pickle = pickle.text(name).tensor(storage, 0, &shape, &strides);
        storages.push(value.to_le_bytes().repeat(count as usize));
    }
    (pickle.raw(b"uu").done(), storages)
}

/// A zip archive of (name, data), not compressed.
pub fn zip(entries: &[(String, &[u8])]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = out.len() as u32;
        let sizes = [data.len() as u32; 2].map(u32::to_le_bytes).concat();
        let name_len = (name.len() as u16).to_le_bytes();
        out.extend(b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        out.extend(&sizes);
        out.extend(name_len);
        out.extend([0, 0]);
        out.extend(name.as_bytes());
        out.extend(*data);
        directory.extend(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend(&sizes);
        directory.extend(name_len);
        directory.extend([0; 12]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let start = out.len() as u32;
    let size = directory.len() as u32;
    out.extend(directory);
    out.extend(b"PK\x05\x06\0\0\0\0");
    out.extend([entries.len() as u16; 2].map(u16::to_le_bytes).concat());
    out.extend(size.to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0, 0]);
    out
}

/// A checkpoint of a pickle and its storages.
pub fn archive(pickle: &[u8], storages: &[Vec<u8>]) -> Vec<u8> {
    let mut entries = vec![("net/data.pkl".to_string(), pickle)];
    let data = storages.iter().enumerate();
    entries.extend(data.map(|(i, data)| (format!("net/data/{i}"), data.as_slice())));
    zip(&entries)
}
