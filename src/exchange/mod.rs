//! Training on several ranks: processes or threads with an adapter each, which train one model on different micro-batches.
//!
//! Every parameter has one owner, which adds the ranks' gradients in a fixed order, keeps the raw weight, γ, u, v and the optimizer's
//! state, updates them, and sends the new effective weight to everybody. Embedding and head are divided by rows. The parameters
//! are dealt to [`Trainer::replicas`](crate::Trainer::replicas) shares, whatever the number of ranks, and the gradients are summed in a tree
//! of as many leaves: any number of ranks that divides it gives the same bits.
//!
//! [`Exchange`] carries messages between ranks. [`in_process`] connects threads, and `Mpi`, with the feature `mpi`, processes under
//! `mpirun`; other transports implement its four required methods.

mod connection;
mod gradients;
mod layout;
mod local;
#[cfg(feature = "mpi")]
mod mpi;
mod norm;
mod ranks;
mod stored;
mod tree;
mod weights;
mod wire;

pub use connection::Traffic;
pub use local::{Local, in_process};
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
pub use ranks::ExchangeOptions;
pub use stored::{Stored, StoredPart};
pub use wire::Wire;

pub(crate) use gradients::Sending;
pub(crate) use layout::Layout;
pub use layout::{Dealt, DealtPiece, deal, step_bytes};
pub(crate) use ranks::Ranks;
pub(crate) use stored::stored;
pub(crate) use tree::{Leaf, Tree};

use std::sync::Arc;

use crate::error::{Error, Result};

/// Bytes on their way from one rank to another; a message to several is not copied.
pub type Message = Arc<Vec<u8>>;

/// Carries messages between ranks: from one to another in the order in which they were sent. Ranks are counted from 0.
pub trait Exchange: Send + Sync {
    /// Which rank this is.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn ranks(&self) -> usize;

    /// Sends a message, perhaps later: returns before it has arrived. [`Error::Rank`] if that rank is gone.
    fn send(&self, to: usize, message: Message) -> Result<()>;

    /// Waits for the next message of a rank; [`Error::Rank`] if it is gone, or sends nothing for too long.
    fn receive(&self, from: usize) -> Result<Message>;

    /// Whether this rank computes from now on, while another of its threads sends: until it no longer does, the others may compute, too,
    /// instead of making room for what is sent. A transport that limits how long a send waits should heed it.
    fn set_computing(&self, _is_computing: bool) {}
}

impl dyn Exchange + '_ {
    /// Every other rank, in order.
    pub(crate) fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let own = self.rank();
        (0..self.ranks()).filter(move |rank| *rank != own)
    }

    /// The messages of all ranks in order, this one's included. Every rank must call it.
    pub fn all_gather(&self, own: Vec<u8>) -> Result<Vec<Message>> {
        let own = Arc::new(own);
        self.others().try_for_each(|rank| self.send(rank, own.clone()))?;
        let message = |rank| if rank == self.rank() { Ok(own.clone()) } else { self.receive(rank) };
        (0..self.ranks()).map(message).collect()
    }

    /// Whether any rank says so. Every rank must call it.
    pub fn any(&self, own: bool) -> Result<bool> {
        Ok(self.all_gather(vec![own.into()])?.iter().any(|message| message.as_slice() == [1]))
    }
}

/// The error of a rank's message that has another size than this rank expects.
pub(crate) fn check_size(rank: usize, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let problem = format!("sent {found} bytes, {expected} expected: does it train another model?");
    Err(Error::Rank { rank, problem })
}
