//! Weights on disk, read lazily, so that the host holds only a piece of a tensor at a time.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use polytape::llama::names;
use polytape::safetensors::Reader;
use polytape::spectral::{PC_GAMMA, PC_U, PC_V, PcConfig, Preconditioner};
use polytape::{Gpu, Params, Role, Tensor};

use super::index::Index;
use crate::config::Config;
use crate::data::foreign::instead;
use crate::model::engine;
use crate::run::checkpoint;
use crate::terminal::failure::Failure;

/// The safetensors of a folder, `model.safetensors` or the files of `model.safetensors.index.json`, and the PC layers of the
/// configuration.
pub struct Stored {
    path: PathBuf,
    files: Vec<Reader>,
    /// Index of the file of each tensor.
    place: BTreeMap<String, usize>,
    pc: Option<PcConfig>,
    /// The preconditioned matrices, without `.weight`, each with the number of its blocks.
    targets: HashMap<String, usize>,
}

impl Stored {
    /// Opens a folder; a run's checkpoint is verified first. A tensor that the configuration does not use is an error.
    pub fn open(config: &Config, path: &Path) -> Result<Self, Failure> {
        let stored = Self::open_any(config, path)?;
        stored.refuse_unused(config)?;
        Ok(stored)
    }

    /// [`Stored::open`] of any tensors.
    pub fn open_any(config: &Config, path: &Path) -> Result<Self, Failure> {
        checkpoint::verify_weights(path)?;
        let single = path.join(checkpoint::MODEL);
        let index = if single.is_file() { None } else { Some(Index::read(path)?) };
        let names = index.as_ref().map_or(Ok(vec![single]), |index| index.files(path))?;
        let open = |name: &PathBuf| Reader::open(name).map_err(|error| instead(name, "weights in safetensors", error));
        let files: Vec<Reader> = names.iter().map(open).collect::<Result<_, _>>()?;
        let mut place = BTreeMap::new();
        for (at, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(other) = place.insert(name.clone(), at) {
                    let (one, other) = (names[other].display(), names[at].display());
                    return Err(Failure::other(format!("{one} and {other}: found {name} in both, expected it in one of them")));
                }
            }
        }
        if let Some(index) = index {
            index.check(path, &place, &names)?;
        }
        let pc = config.pc.as_ref().map(engine::pc).transpose()?;
        Ok(Self { path: path.to_owned(), files, place, pc, targets: engine::pc_targets(config).into_iter().collect() })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of its tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.place.keys().map(String::as_str)
    }

    /// Whether it has the tensor.
    pub fn has(&self, name: &str) -> bool {
        self.place.contains_key(name)
    }

    fn file(&self, name: &str) -> polytape::Result<&Reader> {
        match self.place.get(name) {
            Some(&at) => Ok(&self.files[at]),
            None => Err(polytape::Error::File { path: self.path.clone(), problem: format!("tensor `{name}` is missing") }),
        }
    }

    /// The raw tensor, as trained.
    pub fn raw(&self, gpu: &Gpu, name: &str, shape: &[usize]) -> polytape::Result<Tensor> {
        self.file(name)?.tensor_of(gpu, name, shape)
    }

    /// A tensor of any shape.
    pub fn tensor(&self, gpu: &Gpu, name: &str) -> polytape::Result<Tensor> {
        self.file(name)?.tensor(gpu, name)
    }

    /// A tensor's values, without a device.
    pub fn values(&self, name: &str) -> polytape::Result<Vec<f32>> {
        self.file(name)?.values(name)
    }

    /// Number of a tensor's values.
    pub fn len(&self, name: &str) -> polytape::Result<usize> {
        self.file(name)?.len(name)
    }

    /// Some of a tensor's values, without a device.
    pub fn part(&self, name: &str, range: Range<usize>) -> polytape::Result<Vec<f32>> {
        self.file(name)?.part(name, range)
    }

    /// The tensor that the model computes with: the effective weight of a preconditioned matrix, else the raw one.
    pub fn effective(&self, gpu: &Gpu, name: &str, shape: &[usize]) -> polytape::Result<Tensor> {
        let raw = self.raw(gpu, name, shape)?;
        Ok(self.preconditioned(name, &raw)?.unwrap_or(raw))
    }

    /// The effective weight of a matrix; `None` if it has no PC layer.
    pub fn preconditioned(&self, name: &str, raw: &Tensor) -> polytape::Result<Option<Tensor>> {
        let stem = names::stem(name);
        let (Some(pc), Some(&blocks)) = (&self.pc, self.targets.get(stem)) else { return Ok(None) };
        let mut params = Params::new(raw.gpu());
        let id = params.add(name, Role::Matrix, raw.clone())?;
        let gamma = pc.learnable_gamma.then_some((PC_GAMMA, Role::Vector));
        for (part, role) in [(PC_U, Role::State), (PC_V, Role::State)].into_iter().chain(gamma) {
            let part = format!("{stem}.{part}");
            let tensor = self.tensor(raw.gpu(), &part)?;
            params.add(part, role, tensor)?;
        }
        // The seed is unused: u, v and γ exist.
        let layer = Preconditioner::attach(&mut params, pc.clone(), &[(id, blocks)], 0)?;
        Ok(Some(layer.effective(&params)?.params.get(id)?.tensor.clone()))
    }
}
