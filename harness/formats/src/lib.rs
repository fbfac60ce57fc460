//! Files of other tools: execution traces for simulators, written ([`chakra`]); logs of training programs ([`logs`]) and what nccl-tests
//! measured ([`nccl_tests`]), read.

pub mod chakra;
pub mod logs;
pub mod nccl_tests;
