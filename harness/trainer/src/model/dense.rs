//! The dense parameters of a rank: which there are, and how tensor parallelism cuts them.

use tch::{Device, Kind, Tensor};

use crate::model::parameters::{Bucket, Initial, initial};
use crate::model::share::Collected;

/// Collects the dense parameters of a rank at their initial values.
pub struct Builder {
    seed: u64,
    device: Device,
    /// Tensor-parallel rank, and how many there are.
    tp: (i64, i64),
    sharded: Collected,
    replicated: Collected,
    named: Vec<Named>,
}

/// A dense parameter of a rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name, the same under every plan.
    pub name: String,
    /// Its number in its bucket: the sharded one if it is cut, else the replicated one.
    pub index: usize,
    pub cut: Option<Cut>,
}

/// How a parameter is cut over tensor-parallel ranks: it falls into `pieces` along `dim`, and each rank holds its part of
/// every piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    pub dim: i64,
    pub pieces: i64,
}

/// Name, shape and initial values of a parameter.
type Parameter<'a> = (&'a str, &'a [i64], Initial);

impl Builder {
    /// `tp`: the tensor-parallel rank, and how many there are. `replica`: the same of data-parallel ranks, if these keep a part each.
    pub fn new(seed: u64, device: Device, tp: (usize, usize), replica: Option<(usize, usize)>) -> Self {
        let tp = (tp.0 as i64, tp.1 as i64);
        let collected = || Collected::new(replica, device);
        Self { seed, device, tp, sharded: collected(), replicated: collected(), named: Vec::new() }
    }

    /// Ends what is gathered and reduced together.
    pub fn end_unit(&mut self) {
        self.sharded.end_unit();
        self.replicated.end_unit();
    }

    pub(super) fn tensor_parallel_size(&self) -> i64 {
        self.tp.1
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    /// Adds a parameter that every tensor-parallel rank holds; returns its index.
    pub(super) fn whole(&mut self, (name, shape, values): Parameter) -> usize {
        let index = self.replicated.push(initial(self.seed, name, shape, values, self.device));
        self.named.push(Named { name: name.to_owned(), index, cut: None });
        index
    }

    /// Adds this rank's part of a parameter that is cut along `dim`, in `pieces` that are each cut on their own; returns its
    /// index.
    pub(super) fn cut(&mut self, (name, shape, values): Parameter, dim: i64, pieces: i64) -> usize {
        let whole = initial(self.seed, name, shape, values, self.device);
        let (rank, size) = self.tp;
        let part = |piece: Tensor| piece.chunk(size, dim).remove(rank as usize);
        let parts: Vec<Tensor> = whole.chunk(pieces, dim).into_iter().map(part).collect();
        let index = self.sharded.push(Tensor::cat(&parts, dim).contiguous());
        self.named.push(Named { name: name.to_owned(), index, cut: Some(Cut { dim, pieces }) });
        index
    }

    /// This rank's part along `dim` of a parameter that is kept elsewhere.
    pub(super) fn shard(&self, name: &str, shape: &[i64], dim: i64) -> Tensor {
        let (rank, size) = self.tp;
        initial(self.seed, name, shape, Initial::Normal(1.0), self.device).chunk(size, dim).remove(rank as usize)
    }

    /// `kinds`: of weights, and of gradients.
    pub fn finish(self, kinds: [Kind; 2]) -> Dense {
        Dense { sharded: self.sharded.bucket(kinds), replicated: self.replicated.bucket(kinds), named: self.named }
    }
}

/// The dense parameters of a rank.
pub struct Dense {
    /// Cut over tensor-parallel ranks.
    pub sharded: Bucket,
    /// The same on all of them.
    pub replicated: Bucket,
    pub named: Vec<Named>,
}
