//! Wrapper of `draw.cu`.

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

impl Kernels {
    /// The first normal numbers of a stream, times `deviation`, in single precision.
    pub(crate) fn normal(&self, stream: &ChaCha8Rng, shape: &[i64], deviation: f64) -> Tensor {
        let to = self.empty(shape, Kind::Float);
        let key = stream.get_seed();
        let mut numbers: Vec<u32> =
            key.chunks_exact(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect();
        let name = stream.get_stream();
        numbers.extend([name as u32, (name >> 32) as u32]);
        let count = to.numel() as i64;
        let arguments = Arguments::new().tensor(&to).long(count).ints(&numbers).float(deviation);
        self.launch("normal", Shape::new((count + 2047) / 2048, 256), arguments);
        to
    }
}
