//! ZeRO stage 3: weights are gathered before a micro-batch passes through a block, forward and backward, and gradients reduced behind its
//! backward pass.
//!
//! What is gathered and reduced together is a unit: what comes before the blocks, each block, and what comes behind them. Those of the next unit
//! are gathered while one runs. The words of the embedding, which both ends may need, stay whole through a pass.

use systems::Zero;
use systems::iteration::state::{StateTraffic, exposed};
use systems::iteration::timeline::Activity;
use systems::program::Direction;
use workloads::Seconds;

use crate::comm::{CommError, Communicator};
use crate::error::TrainError;
use crate::model::parameters::Bucket;
use crate::rank::Rank;
use crate::rank::stage::Block;

/// A bucket, the number of a unit in it, and the replicas that keep its parts.
type Shared<'a> = (&'a Bucket, usize, &'a dyn Communicator);

/// The unit of a stage's first block.
pub(super) const FIRST_BLOCK: usize = 1;

impl Rank<'_> {
    /// The unit behind the blocks of the stage.
    pub(super) fn last_unit(&self) -> usize {
        FIRST_BLOCK + self.stage.blocks.len()
    }

    fn block_of(&self, unit: usize) -> Option<&Block> {
        self.stage.blocks.get(unit.checked_sub(FIRST_BLOCK)?)
    }

    /// What replicas keep parts of in a unit.
    fn shared(&self, unit: usize) -> impl Iterator<Item = Shared<'_>> {
        let (stage, groups) = (&self.stage, &self.groups);
        let dense: [Shared; 3] = [
            (&stage.dense.sharded, unit, groups.data()),
            (&stage.dense.replicated, unit, groups.data()),
            (&stage.gates.scores, unit, groups.stage()),
        ];
        let layer = self.block_of(unit).and_then(Block::moe);
        let experts = layer.map(|layer| -> Shared { (&layer.experts.bucket, 0, &*groups.replicas) });
        dense.into_iter().chain(experts).filter(|(bucket, ..)| bucket.is_shared())
    }

    /// The words of the embedding, where replicas keep parts of them.
    fn words(&self) -> Option<Shared<'_>> {
        let words = &self.stage.embedding_weight;
        words.is_shared().then(|| (words, 0, self.groups.data()))
    }

    /// Before a pass through a unit: its weights are whole from here on, and those of the next begin to be gathered.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn enter_unit(&self, unit: usize, direction: Direction) -> Result<(), TrainError> {
        if self.plan.zero != Zero::Weights {
            return Ok(());
        }
        let (first, next) = match direction {
            Direction::Forward => (0, Some(unit + 1).filter(|&next| next <= self.last_unit())),
            Direction::Backward => (self.last_unit(), unit.checked_sub(1)),
        };
        self.timer.wait(Activity::ShardedState, || -> Result<(), CommError> {
            let words = self.words().filter(|_| unit == first);
            for (bucket, unit, replicas) in self.shared(unit).chain(words) {
                bucket.restore(unit, replicas)?;
                if direction == Direction::Backward {
                    bucket.clear();
                }
            }
            let mut of_next = next.into_iter().flat_map(|next| self.shared(next));
            of_next.try_for_each(|(bucket, unit, replicas)| bucket.gather(unit, replicas))
        })?;
        self.queue_weights(unit, next)
    }

    /// Behind a backward pass through a unit: its gradients begin to be reduced.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn leave_unit(&self, unit: usize) -> Result<(), TrainError> {
        if self.plan.zero != Zero::Weights {
            return Ok(());
        }
        self.timer.wait(Activity::ShardedState, || -> Result<(), CommError> {
            // Gradients of copies are added before the whole is cut.
            let layer = self.block_of(unit).and_then(Block::moe).filter(|layer| layer.experts.bucket.is_shared());
            layer.map_or(Ok(()), |layer| layer.experts.settle(&*self.groups.experts))?;
            let words = self.words().filter(|_| unit == 0);
            for (bucket, unit, replicas) in self.shared(unit).chain(words) {
                bucket.reduce(unit, replicas)?;
            }
            Ok(())
        })?;
        if self.is_queued() && self.timer.is_virtual() && self.block_of(unit).is_some() {
            self.timer.queue(&*self.groups.experts, self.traffic().of_block(self.stage.blocks.len()).reduced)?;
        }
        Ok(())
    }

    /// Before the exchanges of a block's MoE layer: where transfers of state are in line with them, those that began are over.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn before_exchanges(&self, block: &Block) -> Result<(), TrainError> {
        if self.plan.zero != Zero::Weights || !self.is_queued() {
            return Ok(());
        }
        let unit = FIRST_BLOCK + block.number - self.stage.blocks[0].number;
        let all = || [unit - 1, unit, unit + 1].into_iter().flat_map(|unit| self.shared(unit));
        Ok(self
            .timer
            .wait(Activity::ShardedState, || all().try_for_each(|(bucket, ..)| bucket.wait_for_transfers()))?)
    }

    /// Behind the passes of an iteration: all gradients are reduced.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn reduced(&self) -> Result<(), TrainError> {
        if self.plan.zero != Zero::Weights {
            return Ok(());
        }
        let all = || (0..=self.last_unit()).flat_map(|unit| self.shared(unit)).chain(self.words());
        Ok(self.timer.wait(Activity::ShardedState, || all().try_for_each(|(bucket, ..)| bucket.reduced()))?)
    }

    /// Under a virtual clock, behind what a pass computes since `before`: what shows of the transfers that accompany it.
    ///
    /// # Errors
    /// A peer that died.
    pub(super) fn show_transfers(&self, direction: Direction, before: Seconds) -> Result<(), TrainError> {
        if self.plan.zero != Zero::Weights || !self.timer.is_virtual() {
            return Ok(());
        }
        let group = &*self.groups.experts;
        if self.is_queued() {
            if direction == Direction::Backward {
                let over = self.timer.queue(group, Seconds::ZERO)?;
                self.wait_until(over);
            }
            return Ok(());
        }
        let computed = self.timer.gather(group, &[(self.timer.computed() - before).0])?;
        let mean = computed.iter().map(|row| Seconds(row[1])).sum::<Seconds>() / group.size() as f64;
        let shown = exposed(self.traffic().of_pass(direction), mean, self.stage.blocks.len());
        self.timer.advance(Activity::ShardedState, shown);
        Ok(())
    }

    /// Under a virtual clock, where transfers are in line with exchanges: waits for a block's weights, and asks for the next block's.
    fn queue_weights(&self, unit: usize, next: Option<usize>) -> Result<(), TrainError> {
        if !self.is_queued() || !self.timer.is_virtual() || self.block_of(unit).is_none() {
            return Ok(());
        }
        let gathered = self.traffic().of_block(self.stage.blocks.len()).gathered;
        let ask = || self.timer.queue(&*self.groups.experts, gathered);
        let there = self.asked.take().map_or_else(ask, Ok)?;
        self.wait_until(there);
        if next.and_then(|next| self.block_of(next)).is_some() {
            self.asked.set(Some(ask()?));
        }
        Ok(())
    }

    fn wait_until(&self, over: Seconds) {
        self.timer.advance(Activity::ShardedState, (over - self.timer.now()).max(Seconds::ZERO));
    }

    fn is_queued(&self) -> bool {
        self.online.policy().overlap().queued
    }

    fn traffic(&self) -> StateTraffic<'_> {
        StateTraffic::of_chunk(self.setup.job, &self.plan, self.setup.costs, self.stage_number)
    }
}
