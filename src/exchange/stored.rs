//! [`Stored`]: the tensors of a checkpoint, wherever their parts are.

use std::collections::HashMap;

use super::connection::Connection;
use crate::error::Result;
use crate::optim::Optimizer;
use crate::params::Params;
use crate::tensor::Tensor;

/// A tensor of a checkpoint: the same list on all ranks, from which they write it together.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its name.
    pub name: String,
    /// Sizes of its dimensions.
    pub shape: Vec<usize>,
    /// One after the other; a single one unless several ranks own rows of it.
    pub parts: Vec<StoredPart>,
}

/// Part of a tensor's values.
#[derive(Debug, Clone)]
pub struct StoredPart {
    /// The rank that has them.
    pub rank: usize,
    /// Their number.
    pub len: usize,
    /// The values, at that rank.
    pub tensor: Option<Tensor>,
}

impl Stored {
    /// A tensor that is all here.
    pub fn whole(name: String, tensor: Tensor) -> Self {
        let (shape, len) = (tensor.shape().to_vec(), tensor.len());
        Self { name, shape, parts: vec![StoredPart { rank: 0, len, tensor: Some(tensor) }] }
    }
}

/// (The parameters, the optimizer's state) of all ranks.
pub(crate) fn stored(connection: &Connection, params: &Params, optimizer: &dyn Optimizer) -> Result<(Vec<Stored>, Vec<Stored>)> {
    let (mut model, mut state) = (Vec::<Stored>::new(), Vec::<Stored>::new());
    let moments: HashMap<String, Tensor> = optimizer.state_tensors(params)?.into_iter().collect();
    let has_state = optimizer.state().steps() > 0;
    for (item, own) in connection.layout.items.iter().zip(&connection.own) {
        let rank = connection.owner(item);
        let tensor = own.map(|id| Ok(params.get(id)?.tensor.clone())).transpose()?;
        let begins = item.rows.start == 0;
        extend(&mut model, begins, item.name.clone(), item.shape.clone(), StoredPart { rank, len: item.numel(), tensor });
        if !has_state || !item.is_trainable() {
            continue;
        }
        let (whole, part) = (optimizer.slots(item.role, &item.shape), optimizer.slots(item.role, &item.own_shape()));
        for (whole, part) in whole.into_iter().zip(part) {
            let tensor = moments.get(&format!("{}.{}", item.own_name(), part.name)).cloned();
            let len = part.shape.iter().product();
            let name = format!("{}.{}", item.name, whole.name);
            extend(&mut state, begins, name, whole.shape, StoredPart { rank, len, tensor });
        }
    }
    Ok((model, state))
}

/// Appends a tensor that begins with this part, or the part to its tensor.
fn extend(list: &mut Vec<Stored>, begins: bool, name: String, shape: Vec<usize>, part: StoredPart) {
    if begins {
        return list.push(Stored { name, shape, parts: vec![part] });
    }
    let stored = list.iter_mut().rfind(|stored| stored.name == name);
    stored.expect("bug: rows without the first").parts.push(part);
}
