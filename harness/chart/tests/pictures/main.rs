//! Pictures as wholes: each kind of chart against a committed SVG, and charts of unreasonable data.

mod extremes;
mod golden;
mod samples;
