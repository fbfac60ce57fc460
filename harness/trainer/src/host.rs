//! Reads tensors on the host.
//!
//! libtorch converts between kinds silently. A kind that the reader does not expect is a defect of the trainer, so it is an
//! error here, never an empty list or a zero.

use tch::kind::Element;
use tch::{Device, TchError, Tensor};

use crate::error::TrainError;

/// All elements of a tensor of any shape, in order.
///
/// # Errors
/// Elements of another kind than `T`.
pub(crate) fn to_host<T: Element + Copy>(tensor: &Tensor) -> Result<Vec<T>, TrainError> {
    let mismatch = |expected: String| TrainError::Tensor { shape: tensor.size(), found: tensor.kind(), expected };
    if tensor.kind() != T::KIND {
        return Err(mismatch(format!("elements of {:?}", T::KIND)));
    }
    let flat = tensor.reshape([-1]).to_device(Device::Cpu);
    Vec::try_from(flat).map_err(|error: TchError| mismatch(error.to_string()))
}

/// A tensor of the host on a device. The host does not wait for what the device still has to do.
pub(crate) fn to_device(tensor: &Tensor, device: Device) -> Tensor {
    tensor.to_device_(device, tensor.kind(), true, false)
}

/// The only element of a tensor.
///
/// # Errors
/// Elements of another kind than `T`, or another number of them than one.
pub(crate) fn to_scalar<T: Element + Copy>(tensor: &Tensor) -> Result<T, TrainError> {
    match to_host(tensor)?[..] {
        [element] => Ok(element),
        _ => Err(TrainError::Tensor { shape: tensor.size(), found: tensor.kind(), expected: "one element".to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn elements_are_read_in_order_from_any_shape() {
        let tensor = Tensor::from_slice(&[1i64, 2, 3, 4]).view([2, 2]);
        assert_eq!(to_host::<i64>(&tensor).unwrap(), [1, 2, 3, 4]);
        assert_eq!(to_host::<i64>(&tensor.tr()).unwrap(), [1, 3, 2, 4]);
        assert_eq!(to_host::<f32>(&Tensor::zeros([0, 3], (Kind::Float, Device::Cpu))).unwrap(), [0.0; 0]);
        assert_eq!(to_scalar::<f64>(&Tensor::from(2.5f64)).unwrap(), 2.5);
    }

    #[test]
    fn another_kind_or_number_of_elements_is_an_error() {
        let counts = Tensor::from_slice(&[1i32, 2]);
        let error = to_host::<i64>(&counts).unwrap_err().to_string();
        assert_eq!(error, "a tensor [2] of Int: expected elements of Int64");
        let error = to_scalar::<i32>(&counts).unwrap_err().to_string();
        assert_eq!(error, "a tensor [2] of Int: expected one element");
        assert!(to_scalar::<f64>(&Tensor::from(1.0f32)).is_err());
    }
}
