//! What a measurement found: rows, and what is said about the device; as `--json` prints it and as `benches/hardware.jsonl` keeps it.

use polytape::Gpu;
use serde::{Deserialize, Serialize};

use crate::terminal::format::duration;

/// A measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of the program.
    pub version: String,
    pub adapter: String,
    /// Kind and interface: `DiscreteGpu, Vulkan`.
    pub kind: String,
    pub driver: String,
    pub kernels: String,
    pub system: String,
    /// How long it took.
    pub seconds: f64,
    /// Whether Ctrl-C ended it early.
    pub interrupted: bool,
    pub rows: Vec<Row>,
    pub left_out: Vec<LeftOut>,
    /// Wrong results and errors.
    pub failed: Vec<String>,
}

/// A measured value.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Row {
    pub part: String,
    /// What was measured, with its shape.
    pub what: String,
    /// Its column in the table, such as the precision.
    pub column: String,
    pub unit: Unit,
    pub value: f64,
    /// By which share of the best sample the median was slower.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
    /// The share of the measured limit that it reaches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub of_limit: Option<f64>,
    /// A remark, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// Units of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unit {
    #[default]
    #[serde(rename = "TFLOP/s")]
    Teraflops,
    #[serde(rename = "GB/s")]
    Gigabytes,
    #[serde(rename = "tokens/s")]
    Tokens,
    #[serde(rename = "ms")]
    Milliseconds,
    #[serde(rename = "%")]
    Percent,
    #[serde(rename = "dispatches")]
    Dispatches,
}

impl Unit {
    /// As in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Teraflops => "TFLOP/s",
            Self::Gigabytes => "GB/s",
            Self::Tokens => "tokens/s",
            Self::Milliseconds => "ms",
            Self::Percent => "%",
            Self::Dispatches => "dispatches",
        }
    }

    /// Whether more is better.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::Teraflops | Self::Gigabytes | Self::Tokens)
    }
}

/// What was not measured, and why.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LeftOut {
    pub part: String,
    pub what: String,
    pub reason: String,
}

impl Report {
    /// Of a device; nothing measured yet.
    pub fn of(gpu: &Gpu) -> Self {
        let adapter = gpu.adapter();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            adapter: adapter.name.clone(),
            kind: format!("{:?}, {:?}", adapter.kind, adapter.backend),
            driver: adapter.driver.clone(),
            kernels: gpu.kernels().to_string(),
            system: format!("{} {}, {cores} cores", std::env::consts::OS, std::env::consts::ARCH),
            seconds: 0.0,
            interrupted: false,
            rows: Vec::new(),
            left_out: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// The lines above the tables.
    pub fn heading(&self) -> String {
        let Self { version, adapter, kind, driver, kernels, system, .. } = self;
        format!(
            "llama_pc {version} bench\nadapter  {adapter} ({kind})\ndriver   {driver}\nkernels  {kernels}\nsystem   {system}\n"
        )
    }

    /// The lines below the tables.
    pub fn ending(&self) -> String {
        let how = if self.interrupted { "interrupted" } else { "measured" };
        let count = self.rows.len();
        let left_out = match self.left_out.len() {
            0 => String::new(),
            count => format!(", {count} left out"),
        };
        let failed = match self.failed.len() {
            0 => String::new(),
            count => format!(", {count} FAILED"),
        };
        let failures: String = self.failed.iter().map(|line| format!("FAILED {line}\n")).collect();
        format!("\n{failures}{how} {count} values in {}{left_out}{failed}\n", duration(self.seconds))
    }

    /// One JSON object on a line.
    pub fn json(&self) -> String {
        serde_json::to_string(self).expect("bug: the report does not serialise") + "\n"
    }

    /// The row of these names.
    pub fn find(&self, row: &Row) -> Option<&Row> {
        let names = |row: &Row| (row.part.clone(), row.what.clone(), row.column.clone());
        self.rows.iter().find(|other| names(other) == names(row))
    }
}
