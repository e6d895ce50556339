//! The flags that choose an adapter and its kernels, shared by most commands.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use polytape::gpu::{AdapterSummary, Features, KernelTier, Tuning, adapters};
use polytape::{AdapterChoice, Error, Gpu, GpuOptions};

use crate::terminal::failure::Failure;
use crate::terminal::output;

/// Where to run.
#[derive(clap::Args)]
pub struct Device {
    /// Adapter to run on: an index listed by `devices`, part of a name, or `cpu`
    #[arg(long, value_name = "X")]
    pub adapter: Option<String>,
    /// Use these kernels instead of those chosen for the adapter: host, fallback, portable, subgroup or matrix
    #[arg(long, alias = "profile-kernels", value_name = "TIER")]
    pub kernels: Option<KernelTier>,
    /// Threads of the host kernels, instead of one per core. Results are the same for any number
    #[arg(long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Choose kernels by rule instead of timing them on first use. Timings are kept in the user's cache folder; they affect speed,
    /// never results
    #[arg(long)]
    pub no_tune: bool,
}

impl Device {
    /// Opens the requested adapter, or else the best one, with the requested kernels, or else those that suit it.
    pub fn open(&self, profile: bool) -> Result<Gpu, Failure> {
        self.open_with(profile, self.adapter.as_ref().map(|name| ("--adapter", name)), self.threads)
    }

    /// [`Device::open`] for one of the ranks of this host: (which, of how many). Each takes another GPU, or the one that `map` names for it; on
    /// a CPU adapter they share the cores.
    pub fn open_on_rank(&self, profile: bool, (rank, ranks): (usize, usize), map: &[usize]) -> Result<Gpu, Failure> {
        if !map.is_empty() && map.len() != ranks {
            let found = map.len();
            return Err(Failure::usage(format!(
                "--device-map: found {found} adapters, expected one for each of the {ranks} ranks of a host"
            )));
        }
        if ranks == 1 && map.is_empty() {
            return self.open(profile);
        }
        let share = std::thread::available_parallelism().map_or(1, |cores| cores.get() / ranks).max(1);
        let threads = self.threads.or(NonZeroUsize::new(share));
        let own = if let Some(index) = map.get(rank) {
            Some(("--device-map", index.to_string()))
        } else if let Some(name) = &self.adapter {
            Some(("--adapter", name.clone()))
        } else {
            let gpus = gpus_of_host(adapters());
            if !gpus.is_empty() && gpus.len() < ranks {
                let found = gpus.len();
                return Err(Failure::usage(format!("found {ranks} ranks on a host with {found} GPUs, expected one each"))
                    .hint("--device-map 0,0 puts two ranks on one GPU; a rank gains nothing there"));
            }
            gpus.get(rank).map(|index| ("adapter", index.to_string()))
        };
        let gpu = self.open_with(profile, own.as_ref().map(|(flag, name)| (*flag, name)), threads)?;
        if map.is_empty() && self.adapter.is_some() && !gpu.adapter().is_software() {
            let name = &gpu.adapter().name;
            return Err(Failure::usage(format!("--adapter: found `{name}` for {ranks} ranks of a host, expected one for each"))
                .hint("--device-map names the adapter of each rank"));
        }
        Ok(gpu)
    }

    /// Opens the adapter that a flag names, or the best one.
    fn open_with(&self, profile: bool, adapter: Option<(&str, &String)>, threads: Option<NonZeroUsize>) -> Result<Gpu, Failure> {
        let choice = adapter.map_or(AdapterChoice::Best, |(_, text)| text.parse().unwrap_or_else(|never| match never {}));
        let options = GpuOptions { adapter: choice, profile, threads: threads.map(NonZeroUsize::get), ..self.options() };
        Gpu::open(&options).map_err(|error| match (&error, adapter, self.kernels) {
            (Error::Adapter(_), Some((flag, name)), None) => {
                Failure::usage(format!("{flag} {name}: {error}")).hint("`devices` lists the adapters")
            }
            (Error::Adapter(_), Some((flag, name)), Some(kernels)) => {
                Failure::usage(format!("{flag} {name} --kernels {kernels}: {error}"))
                    .hint("`devices` lists the adapters and the kernels that each can run")
            }
            (Error::Adapter(_), None, Some(kernels)) => Failure::usage(format!("--kernels {kernels}: {error}"))
                .hint("`devices` lists the adapters and the kernels that each can run"),
            (Error::Adapter(_), None, None) => {
                Failure::other(error.to_string()).hint("scripts/demo installs a driver that runs on the CPU")
            }
            _ => error.into(),
        })
    }

    /// [`Device::open`] with kernels that can be timed where the adapter has what that needs, and that are not timed yet.
    pub fn open_to_time(&self) -> Result<Gpu, Failure> {
        let gpu = self.open(false)?;
        if !gpu.adapter().features.contains(Features::TIMESTAMP_QUERY | Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
            return Ok(gpu);
        }
        let (adapter, kernels) = (AdapterChoice::Index(gpu.adapter().index), Some(gpu.kernels()));
        // Warnings were given the first time.
        let gpu = Gpu::open(&GpuOptions { adapter, kernels, profile: true, warn: |_| (), ..self.options() })?;
        gpu.time_kernels(false)?;
        Ok(gpu)
    }

    /// Opens the adapter of `gpu` again, with `threads` threads for the host kernels.
    pub fn reopen(&self, gpu: &Gpu, threads: NonZeroUsize) -> Result<Gpu, Failure> {
        let (adapter, kernels) = (AdapterChoice::Index(gpu.adapter().index), Some(gpu.kernels()));
        // Warnings were given the first time.
        let options = GpuOptions { adapter, kernels, threads: Some(threads.get()), warn: |_| (), ..self.options() };
        Ok(Gpu::open(&options)?)
    }

    fn options(&self) -> GpuOptions {
        let adapter =
            self.adapter.as_ref().map_or(AdapterChoice::Best, |text| text.parse().unwrap_or_else(|never| match never {}));
        let warn = |line: &str| output::note(&format!("warning: {line}"));
        let tuning = if self.no_tune { Tuning::Off } else { cache_folder().map_or(Tuning::Process, Tuning::Folder) };
        let threads = self.threads.map(NonZeroUsize::get);
        GpuOptions { adapter, kernels: self.kernels, tuning, threads, warn, ..Default::default() }
    }
}

/// The usable GPUs in the order of the bus: each once, though several drivers may list it.
fn gpus_of_host(found: Vec<AdapterSummary>) -> Vec<usize> {
    let mut gpus: Vec<_> = found.into_iter().filter(|one| !one.is_software() && one.kernel_tier.is_some()).collect();
    gpus.sort_by(|a, b| (&a.pci, a.index).cmp(&(&b.pci, b.index)));
    // Of one driver, two of a place are two cards: DX12 finds the place by the maker and the model.
    let is_same = |a: &AdapterSummary, b: &AdapterSummary| a.pci == b.pci && (a.backend, &a.driver) != (b.backend, &b.driver);
    gpus.dedup_by(|later, first| !first.pci.is_empty() && is_same(first, later));
    gpus.iter().map(|one| one.index).collect()
}

/// The user's cache folder for this program.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = if cfg!(windows) {
        folder("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        folder("HOME").map(|home| home.join("Library/Caches"))
    } else {
        folder("XDG_CACHE_HOME").or_else(|| folder("HOME").map(|home| home.join(".cache")))
    };
    base.map(|base| base.join("polytape"))
}

#[cfg(test)]
mod tests {
    use polytape::gpu::{Backend, DeviceType};

    use super::*;

    #[test]
    fn each_gpu_is_dealt_once_in_the_order_of_the_bus() {
        let one = adapters().swap_remove(0);
        let gpu = |index, pci: &str, driver: &str, backend| AdapterSummary {
            index,
            kind: DeviceType::DiscreteGpu,
            pci: pci.into(),
            driver: driver.into(),
            backend,
            ..one.clone()
        };
        let dealt = |found: &[AdapterSummary]| gpus_of_host(found.to_vec());
        let (vulkan, dx12) = (Backend::Vulkan, Backend::Dx12);
        let two = [gpu(0, "0000:41:00.0", "a", vulkan), gpu(1, "0000:01:00.0", "a", vulkan), one.clone()];
        assert_eq!(dealt(&two), [1, 0]);
        // Another driver lists the same ones again.
        let twice = [&two[..], &[gpu(3, "0000:01:00.0", "b", vulkan), gpu(4, "0000:41:00.0", "b", vulkan)]].concat();
        assert_eq!(dealt(&twice), [1, 0]);
        assert_eq!(dealt(&[gpu(0, "0000:01:00.0", "a", dx12), gpu(1, "0000:01:00.0", "a", dx12)]), [0, 1]);
        assert_eq!(dealt(&[gpu(0, "", "a", vulkan), gpu(1, "", "b", vulkan)]), [0, 1]);
        assert_eq!(dealt(&[AdapterSummary { kernel_tier: None, ..gpu(0, "0000:01:00.0", "a", vulkan) }]), [0; 0]);
    }
}
