//! The layers that networks are made of: each method appends one operation and returns its output.

use super::{Graph, Value};
use crate::model::Error;
use crate::plan::{
    Activate, Activation, BatchLayout, BufferId, ChannelAttention, ComposeConv, ComposeParams,
    Concat, Conv, FoldedConv, Gate, GateKind, NanoBlock, NanoParams, Op, ParamRange, Reconstruct,
    RmsNorm, ScaledSum, Shuffle, StreamBlock, StreamParams, TokenAttention, TokenParams,
    WindowAttention,
};

/// Weight and bias of a convolution, and the buffer that they are in.
#[derive(Clone, Copy)]
struct ConvWeights {
    buffer: BufferId,
    weight: ParamRange,
    bias: ParamRange,
}

impl Graph<'_, '_> {
    /// A convolution with the parameters `NAME.weight` and `NAME.bias`, from whose shapes its sizes
    /// follow. A linear layer is a convolution of one tap.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn conv(&mut self, name: &str, x: Value) -> Result<Value, Error> {
        self.dilated_conv(name, x, 1)
    }

    /// As [`Graph::conv`], with `dilation` pixels from tap to tap.
    pub fn dilated_conv(&mut self, name: &str, x: Value, dilation: usize) -> Result<Value, Error> {
        let [weight, bias] = self.conv_params(name)?;
        let parameter = self.table.get(&format!("{name}.weight"));
        let (cout, cin, kernel) = match *parameter.map_or(&[][..], |p| &p.shape) {
            [cout, cin, kernel, _] => (cout, cin, kernel),
            [cout, cin] => (cout, cin, 1),
            _ => {
                return Err(Error::NoParameter {
                    name: format!("{name}.weight with two or four sides"),
                });
            }
        };
        let weights = ConvWeights {
            buffer: self.storage.parameters,
            weight,
            bias,
        };
        let groups = x.channels / cin;
        Ok(self.append_conv(name, x, weights, (cout, kernel, dilation, groups)))
    }

    fn append_conv(
        &mut self,
        name: &str,
        x: Value,
        weights: ConvWeights,
        (cout, kernel, dilation, groups): (usize, usize, usize, usize),
    ) -> Value {
        let output = self.activation(name, cout, x.size);
        self.append(Conv {
            extent: self.extent_of(x.size),
            cin: x.channels,
            cout,
            input_stride: x.stride,
            output_stride: output.stride,
            kernel,
            dilation,
            groups,
            activation: x.activation,
            tile_invariant: self.tile_invariant,
            tile_alignment: self.tile_alignment,
            weight: weights.weight,
            bias: weights.bias,
            parameters: weights.buffer,
            slopes: self.storage.parameters,
            input: x.buffer,
            output: output.buffer,
            workspace: None,
        });
        output
    }

    /// `x` with a function that the convolutions which read it apply.
    pub fn activate(&self, x: Value, activation: Activation) -> Value {
        Value {
            activation: Some(activation),
            ..x
        }
    }

    /// A value whose activation, if it has one, has been applied by an operation of its own. All
    /// layers but convolutions do this with what they read.
    pub fn applied(&mut self, name: &str, x: Value) -> Value {
        let Some(activation) = x.activation else {
            return x;
        };
        let output = self.activation(&format!("{name}, activation"), x.channels, x.size);
        self.append(Activate {
            extent: self.extent_of(x.size),
            channels: x.channels,
            stride: x.stride,
            activation,
            parameters: self.storage.parameters,
            input: x.buffer,
            output: output.buffer,
            workspace: None,
        });
        output
    }

    /// Computes the weights of a Conv3XC with the parameters below `name`, for
    /// [`Graph::composed_conv`]. It belongs to no image, so it is done once for all slices.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn compose(&mut self, name: &str, cin: usize, cout: usize) -> Result<(), Error> {
        let part = |layer: &str| self.conv_params(&format!("{name}.{layer}"));
        let params = ComposeParams {
            skip: part("sk")?,
            first: part("conv.0")?,
            middle: part("conv.1")?,
            last: part("conv.2")?,
        };
        let count = 9 * cin * cout + cout;
        let class = crate::plan::Class::Workspace;
        let weights = self
            .builder
            .floats(format!("composed {name}"), class, count);
        let gradients = self.storage.gradients.map(|_| {
            let name = format!("d composed {name}");
            self.builder.floats(name, class, count)
        });
        self.composed.insert(name.to_string(), (weights, gradients));
        self.append(ComposeConv {
            cin,
            cout,
            params,
            parameters: self.storage.parameters,
            output: weights,
            workspace: None,
        });
        Ok(())
    }

    /// The 3x3 convolution whose weights [`Graph::compose`] computed.
    ///
    /// # Errors
    /// When it has not.
    pub fn composed_conv(&mut self, name: &str, x: Value, cout: usize) -> Result<Value, Error> {
        let found = self.composed.get(name);
        let &(buffer, _) = found.ok_or_else(|| Error::NoParameter {
            name: format!("the composed weights of {name}"),
        })?;
        let len = 9 * x.channels * cout;
        let weights = ConvWeights {
            buffer,
            weight: ParamRange { offset: 0, len },
            bias: ParamRange {
                offset: len,
                len: cout,
            },
        };
        Ok(self.append_conv(name, x, weights, (cout, 3, 1, 1)))
    }

    /// Channels side by side.
    pub fn concat(&mut self, name: &str, parts: &[Value]) -> Value {
        let parts: Vec<Value> = parts.iter().map(|&x| self.applied(name, x)).collect();
        let channels = parts.iter().map(|x| x.channels).sum();
        let size = parts.first().map_or((0, 0), |x| x.size);
        let output = self.activation(name, channels, size);
        self.append(Concat {
            extent: self.extent_of(size),
            parts: parts.iter().map(|x| (x.buffer, x.channels)).collect(),
            output: output.buffer,
        });
        output
    }

    /// A product of activations, see [`GateKind`].
    pub fn gate(&mut self, name: &str, kind: GateKind, a: Value, b: Option<Value>) -> Value {
        let a = self.applied(name, a);
        let b = b.map(|b| self.applied(name, b));
        let channels = match kind {
            GateKind::Attention => a.channels,
            GateKind::Halves { .. } => a.channels / 2,
        };
        let output = self.activation(name, channels, a.size);
        self.append(Gate {
            extent: self.extent_of(a.size),
            channels,
            kind,
            a: a.buffer,
            b: b.map(|b| b.buffer),
            output: output.buffer,
        });
        output
    }

    /// `a + gamma * b`. Several sums may have the same gamma.
    pub fn scaled_sum(
        &mut self,
        name: &str,
        a: Value,
        b: Value,
        gamma: Option<ParamRange>,
    ) -> Value {
        let (a, b) = (self.applied(name, a), self.applied(name, b));
        let output = self.activation(name, a.channels, a.size);
        self.append(ScaledSum {
            extent: self.extent_of(a.size),
            channels: a.channels,
            stride: a.stride,
            gamma,
            parameters: self.storage.parameters,
            a: a.buffer,
            b: b.buffer,
            output: output.buffer,
        });
        output
    }

    /// RMSNorm over channels with the parameters `NAME.scale` and `NAME.bias`. Rows and columns are
    /// filled up with zeros to multiples of `multiple`.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn rms_norm(&mut self, name: &str, x: Value, multiple: usize) -> Result<Value, Error> {
        let x = self.applied(name, x);
        let (h, w) = x.size;
        let padded = (h.next_multiple_of(multiple), w.next_multiple_of(multiple));
        let (scale, bias) = (
            self.param(&format!("{name}.scale"))?,
            self.param(&format!("{name}.bias"))?,
        );
        let output = self.activation(name, x.channels, padded);
        self.append(RmsNorm {
            extent: self.extent_of(x.size),
            padded: self.extent_of(padded),
            channels: x.channels,
            epsilon: 1e-6,
            scale,
            bias,
            parameters: self.storage.parameters,
            input: x.buffer,
            output: output.buffer,
        });
        Ok(output)
    }

    /// [`WindowAttention`] of `x`, whose sides are multiples of the window, with the linear layers
    /// `NAME.qkv` and `NAME.proj` before and after it. The result has `size` rows and columns.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn window_attention(
        &mut self,
        name: &str,
        x: Value,
        size: (usize, usize),
        (heads, window, shift): (usize, usize, usize),
    ) -> Result<Value, Error> {
        let qkv = self.conv(&format!("{name}.qkv"), x)?;
        let output = self.activation(name, x.channels, size);
        self.append(WindowAttention {
            extent: self.extent_of(size),
            padded: self.extent_of(qkv.size),
            channels: x.channels,
            heads,
            window,
            shift,
            qkv: qkv.buffer,
            output: output.buffer,
            workspace: None,
        });
        self.conv(&format!("{name}.proj"), output)
    }

    /// [`ChannelAttention`] with the weights `NAME.fc.0.weight` and `NAME.fc.2.weight`. `means`:
    /// those of `x` over the image that it is a part of; else they are taken of `x`.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn channel_attention(
        &mut self,
        name: &str,
        x: Value,
        means: Option<BufferId>,
    ) -> Result<Value, Error> {
        let x = self.applied(name, x);
        let (down, up) = (
            self.param(&format!("{name}.fc.0.weight"))?,
            self.param(&format!("{name}.fc.2.weight"))?,
        );
        let output = self.activation(name, x.channels, x.size);
        self.append(ChannelAttention {
            extent: self.extent_of(x.size),
            channels: x.channels,
            down,
            up,
            parameters: self.storage.parameters,
            input: x.buffer,
            means,
            output: output.buffer,
            workspace: None,
        });
        Ok(output)
    }

    /// [`TokenAttention`] to the tokens `NAME.token_dict`, with the linear layers `NAME.q_proj` and
    /// `NAME.out_proj` before and after it.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn token_attention(&mut self, name: &str, x: Value) -> Result<Value, Error> {
        let query = self.conv(&format!("{name}.q_proj"), x)?;
        let params = TokenParams {
            tokens: self.param(&format!("{name}.token_dict"))?,
            key: self.conv_params(&format!("{name}.k_proj"))?,
            value: self.conv_params(&format!("{name}.v_proj"))?,
        };
        let output = self.activation(name, x.channels, x.size);
        self.append(TokenAttention {
            extent: self.extent_of(x.size),
            channels: x.channels,
            query_channels: query.channels,
            params,
            parameters: self.storage.parameters,
            query: query.buffer,
            output: output.buffer,
            workspace: None,
        });
        self.conv(&format!("{name}.out_proj"), output)
    }

    /// ParagonSR2 Nano's block with the parameters below `name`.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn nano_block(&mut self, name: &str, x: Value) -> Result<Value, Error> {
        let part = |layer: &str| self.conv_params(&format!("{name}.{layer}"));
        let [conv1_weight, conv1_bias] = part("conv1")?;
        let [dw_weight, dw_bias] = part("dw")?;
        let [conv2_weight, conv2_bias] = part("conv2")?;
        let params = NanoParams {
            conv1_weight,
            conv1_bias,
            dw_weight,
            dw_bias,
            conv2_weight,
            conv2_bias,
            gamma: self.param(&format!("{name}.scale.gamma"))?,
        };
        let output = self.activation(name, x.channels, x.size);
        self.append(NanoBlock {
            extent: self.extent_of(x.size),
            features: x.channels,
            params,
            parameters: self.storage.parameters,
            input: x.buffer,
            output: output.buffer,
            workspace: None,
        });
        Ok(output)
    }

    /// ParagonSR2 Stream's block with the parameters below `name`.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn stream_block(&mut self, name: &str, x: Value) -> Result<Value, Error> {
        let part = |layer: &str| self.conv_params(&format!("{name}.{layer}"));
        let params = StreamParams {
            dw1: part("dw1")?,
            dw3: part("dw3")?,
            fuse: part("fuse")?,
            proj: part("proj")?,
            gate: part("gate")?,
            out: part("out")?,
            gamma: self.param(&format!("{name}.scale.gamma"))?,
        };
        let output = self.activation(name, x.channels, x.size);
        self.append(StreamBlock {
            extent: self.extent_of(x.size),
            features: x.channels,
            params,
            parameters: self.storage.parameters,
            input: x.buffer,
            output: output.buffer,
            workspace: None,
        });
        Ok(output)
    }

    /// The prediction's buffer for the current images, `[N, H, W, 3]`, f32.
    fn output(&mut self) -> BufferId {
        let values = self.extent().scaled(self.net.scale).pixels() * 3;
        let name = format!("output{}", self.part_name());
        self.builder.floats(name, self.prediction.class, values)
    }

    /// The HR patches of the current images, where they are subtracted from the prediction.
    fn subtracted(&self) -> Option<BatchLayout> {
        let first = self.images.start;
        let batch = self.prediction.subtract;
        batch.map(|batch| BatchLayout { first, ..batch })
    }

    /// The end of the ParagonSR2 networks, see [`Reconstruct`]: the prediction's buffer.
    ///
    /// # Errors
    /// When the network has no such parameters.
    pub fn reconstruct(&mut self, input: Value, features: Value) -> Result<BufferId, Error> {
        let output = self.output();
        let ([up_weight, up_bias], [weight, bias]) =
            (self.conv_params("up.0")?, self.conv_params("conv_out")?);
        let mut op = Reconstruct {
            extent: self.extent(),
            scale: self.net.scale,
            features: features.channels,
            // the author's network sharpens for positive values only
            alpha: self.net.number("upsampler_alpha").max(0.0),
            up_weight,
            up_bias,
            weight,
            bias,
            gain: self.param("detail_gain")?,
            parameters: self.storage.parameters,
            tile_invariant: self.tile_invariant,
            tile_alignment: self.tile_alignment,
            input: input.buffer,
            features_in: features.buffer,
            output,
            target: self.subtracted(),
            folded: self.folded.map(|folded| FoldedConv {
                first: false,
                ..folded
            }),
            workspace: None,
        };
        if op.folded.is_none() {
            let name = "folded up.0 and conv_out";
            let buffer = self.builder.prepared(name, &Op::from(op.clone()));
            op.folded = buffer.map(|buffer| FoldedConv {
                buffer,
                first: true,
            });
            self.folded = op.folded;
        }
        self.append(op);
        Ok(output)
    }

    /// Pixel shuffle to an image, plus `base` enlarged by nearest neighbour: the prediction's
    /// buffer.
    pub fn shuffle(&mut self, x: Value, base: Option<Value>) -> BufferId {
        let x = self.applied("output", x);
        let output = self.output();
        self.append(Shuffle {
            extent: self.extent(),
            scale: self.net.scale,
            input_stride: x.stride,
            input: x.buffer,
            base: base.map(|base| base.buffer),
            output,
            target: self.subtracted(),
        });
        output
    }
}
