//! Wrappers of `draw.cu`. A stream is read from its start, whatever was drawn from it.

use rand_chacha::ChaCha8Rng;
use tch::{Kind, Tensor};

use super::Kernels;
use super::launch::{Arguments, Shape};

/// A thread draws eight numbers.
fn by_eight(count: i64) -> Shape {
    Shape::new((count + 2047) / 2048, 256)
}

/// A stream as the source has it.
fn words(stream: &ChaCha8Rng) -> Vec<u32> {
    let (key, name) = (stream.get_seed(), stream.get_stream());
    let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    key.chunks_exact(4).map(word).chain([name as u32, (name >> 32) as u32]).collect()
}

impl Kernels {
    /// The first numbers of a stream in (0, 1], in double precision: the bits that the host draws.
    pub(crate) fn uniform(&self, stream: &ChaCha8Rng, shape: &[i64]) -> Tensor {
        let to = self.empty(shape, Kind::Double);
        let count = to.numel() as i64;
        let arguments = Arguments::new().tensor(&to).long(count).ints(&words(stream));
        self.launch("uniform", by_eight(count), arguments);
        to
    }

    /// The first normal numbers of a stream, times `deviation`, in single precision.
    pub(crate) fn normal(&self, stream: &ChaCha8Rng, shape: &[i64], deviation: f64) -> Tensor {
        let to = self.empty(shape, Kind::Float);
        let count = to.numel() as i64;
        let arguments = Arguments::new().tensor(&to).long(count).ints(&words(stream)).float(deviation);
        self.launch("normal", by_eight(count), arguments);
        to
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::gpu;
    use crate::model::parameters::{stream, uniform};

    #[test]
    #[ignore = "needs a CUDA GPU"]
    fn numbers_are_the_bits_that_the_host_draws() {
        for count in [1, 7, 8, 100_003] {
            let mut rng = stream(7, "a");
            let drawn = gpu().uniform(&rng, &[count]).to_device(tch::Device::Cpu);
            let expected: Vec<f64> = (0..count).map(|_| uniform(&mut rng)).collect();
            assert_eq!(Vec::<f64>::try_from(drawn).unwrap(), expected);
        }
    }
}
