//! Ranks that are threads of one process.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Exchange, Message};
use crate::error::{Error, Result};

/// One rank of [`in_process`].
#[derive(Debug)]
pub struct Local {
    rank: usize,
    timeout: Duration,
    /// To every rank, and from every rank; those of a rank with itself are never used.
    senders: Vec<Sender<Message>>,
    receivers: Vec<Mutex<Receiver<Message>>>,
}

/// Connected ranks for as many threads, which wait for a message at most for `timeout`.
pub fn in_process(ranks: usize, timeout: Duration) -> Vec<Local> {
    let mut senders: Vec<Vec<_>> = (0..ranks).map(|_| Vec::new()).collect();
    let mut receivers: Vec<Vec<_>> = (0..ranks).map(|_| Vec::new()).collect();
    for senders in &mut senders {
        for receivers in &mut receivers {
            let (sender, receiver) = channel();
            senders.push(sender);
            receivers.push(Mutex::new(receiver));
        }
    }
    let pairs = senders.into_iter().zip(receivers).enumerate();
    pairs.map(|(rank, (senders, receivers))| Local { rank, timeout, senders, receivers }).collect()
}

impl Exchange for Local {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.senders.len()
    }

    fn send(&self, to: usize, message: Message) -> Result<()> {
        let gone = |_| Error::Rank { rank: to, problem: "has ended".into() };
        self.senders[to].send(message).map_err(gone)
    }

    fn receive(&self, from: usize) -> Result<Message> {
        let receiver = self.receivers[from].lock().unwrap_or_else(PoisonError::into_inner);
        receiver.recv_timeout(self.timeout).map_err(|error| {
            let problem = match error {
                RecvTimeoutError::Timeout => format!("sent nothing for {:?}", self.timeout),
                RecvTimeoutError::Disconnected => "has ended".into(),
            };
            Error::Rank { rank: from, problem }
        })
    }
}
