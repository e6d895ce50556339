//! Ranks that are processes under `mpirun`. One thread owns MPI: it starts sends and receives, tests them, and sleeps in between, because MPI's own
//! waiting spins, and nothing moves while nobody calls it. All calls of MPI are in this file.
//!
//! Every second the thread tells the others that the process lives, which rank it waits for, and whether it does what they have to wait for: a
//! rank that times out follows these reports to the one at fault.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::ffi::c_int;
use std::mem::ManuallyDrop;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::mpi::environment::{Universe, processor_name};
use ::mpi::ffi;
use ::mpi::topology::Communicator;
use ::mpi::{Threading, initialize_with_threading};

use super::{Exchange, Message};
use crate::error::{Error, Result};

const DATA: c_int = 1;
const BEAT: c_int = 2;
/// Of a sign of life: the rank that is waited for, or `u32::MAX`, and whether the sender is busy.
const BEAT_BYTES: usize = 5;
/// Time between two signs of life.
const BEATS: Duration = Duration::from_secs(1);
/// After this long without one, a process has stopped or cannot be reached.
const SILENCE: Duration = Duration::from_secs(5);
/// Bytes on their way out, and bytes that wait for one another rank's reader: beyond, senders wait.
const MOST_BYTES: usize = 256 << 20;
/// How long the thread sleeps when nothing moves: from, to.
const PAUSES: [Duration; 2] = [Duration::from_micros(20), Duration::from_micros(500)];
/// What standard error may take to reach `mpirun` before the job ends, and what an orderly end may take.
const DRAIN: Duration = Duration::from_millis(200);
const ABORT: Duration = Duration::from_secs(5);
/// Bytes of a message: MPI counts them in an int.
const MOST_IN_MESSAGE: usize = c_int::MAX as usize;

/// One rank under `mpirun`.
pub struct Mpi {
    rank: usize,
    ranks: usize,
    host: String,
    shared: Arc<Shared>,
    commands: Sender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Command {
    Send { to: usize, message: Message },
    Finish,
    Abort(i32),
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    peers: Vec<Peer>,
    /// Bytes on their way out.
    sending: usize,
    timeout: Duration,
    /// Which rank this one waits for.
    waits_for: Option<usize>,
    /// Whether it does what the others have to wait for.
    is_busy: bool,
    /// Whether it computes, while a thread sends what is final.
    is_computing: bool,
    /// When this process last gave a sign of life.
    beaten: Option<Instant>,
}

struct Peer {
    arrived: VecDeque<Message>,
    /// Of `arrived`.
    bytes: usize,
    /// When it last gave a sign of life.
    seen: Instant,
    waits_for: Option<usize>,
    is_busy: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mpi {
    /// Joins the other ranks, each of which must do so within `timeout`, which is also how long a rank may send nothing.
    pub fn start(timeout: Duration) -> Result<Self> {
        let (commands, orders) = channel();
        let (started, ready) = channel();
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let run = move || {
            let (worker, host) = match Worker::start(of_thread, orders, timeout) {
                Ok(worker) => (worker, processor_name().unwrap_or_else(|_| "unnamed".into())),
                Err(error) => return drop(started.send(Err(error))),
            };
            drop(started.send(Ok((worker.rank, worker.ranks, host))));
            worker.run();
        };
        let thread = std::thread::Builder::new().name("mpi".into()).spawn(run);
        let thread = thread.map_err(|error| Error::Value(format!("cannot start a thread for MPI: {error}")))?;
        let (rank, ranks, host) = ready.recv_timeout(timeout).map_err(|error| not_started(error, timeout))??;
        Ok(Self { rank, ranks, host, shared, commands, thread: Mutex::new(Some(thread)) })
    }

    /// The name of this rank's host.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Changes how long a rank may send nothing.
    pub fn set_timeout(&self, timeout: Duration) {
        self.shared.lock().timeout = timeout;
    }

    /// Does work that the others have to wait for: however long it takes, it does not count against their timeout.
    pub fn busy<T>(&self, work: impl FnOnce() -> T) -> T {
        let outer = std::mem::replace(&mut self.shared.lock().is_busy, true);
        let result = work();
        self.shared.lock().is_busy = outer;
        result
    }

    /// Leaves the other ranks, once all are here to do so.
    pub fn finish(&self) -> Result<()> {
        let all: &dyn Exchange = self;
        all.any(false)?;
        drop(self.commands.send(Command::Finish));
        let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() else { return Ok(()) };
        let (started, timeout) = (Instant::now(), self.shared.lock().timeout);
        while !thread.is_finished() {
            if started.elapsed() > timeout {
                let problem = format!("waited {} s for the others to end", timeout.as_secs());
                return Err(Error::Rank { rank: self.rank, problem });
            }
            std::thread::sleep(PAUSES[1]);
        }
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(())
    }

    /// Ends all ranks at once, with this status.
    pub fn abort(&self, status: i32) -> ! {
        std::thread::sleep(DRAIN);
        drop(self.commands.send(Command::Abort(status)));
        std::thread::sleep(ABORT);
        std::process::exit(status)
    }

    /// The rank that `from` waits for, by way of others, or `from` itself.
    fn last_of_chain(&self, state: &State, from: usize) -> usize {
        let mut rank = from;
        for _ in 0..self.ranks {
            let peer = &state.peers[rank];
            match peer.waits_for {
                Some(next) if next != self.rank && peer.seen.elapsed() < SILENCE => rank = next,
                _ => break,
            }
        }
        rank
    }

    /// The error of having waited for `from` too long: it names the last of those that wait for each other.
    fn blame(&self, state: &State, from: usize, waited: Duration) -> Error {
        if let Some(slept) = state.beaten.map(|beaten| beaten.elapsed()).filter(|slept| *slept > SILENCE) {
            let problem = format!("was itself stopped for {} s", slept.as_secs());
            return Error::Rank { rank: self.rank, problem };
        }
        let rank = self.last_of_chain(state, from);
        let silent = state.peers[rank].seen.elapsed();
        let problem = if silent < SILENCE {
            format!("was busy for {} s, longer than the others wait", waited.as_secs())
        } else {
            format!("sent nothing for {} s: it has stopped, or cannot be reached", waited.max(silent).as_secs())
        };
        Error::Rank { rank, problem }
    }

    /// Waits until `ready` returns something, at most as long as ranks wait for `rank`; `sends`: for room for a message.
    fn wait_for<T>(&self, rank: usize, sends: bool, mut ready: impl FnMut(&mut State) -> Option<T>) -> Result<T> {
        let mut started = Instant::now();
        let mut state = self.shared.lock();
        loop {
            if let Some(value) = ready(&mut state) {
                state.waits_for = None;
                return Ok(value);
            }
            // While this rank computes, the others wait for that, not for whom its sender waits.
            state.waits_for = (!(sends && state.is_computing)).then_some(rank);
            let last = &state.peers[self.last_of_chain(&state, rank)];
            // A computing rank makes no room. That is excused while this rank computes, too; afterwards its time counts.
            let is_excused = last.is_busy || (sends && state.is_computing);
            if is_excused && last.seen.elapsed() < SILENCE {
                started = Instant::now();
            }
            let waited = started.elapsed();
            if waited > state.timeout {
                return Err(self.blame(&state, rank, waited));
            }
            let woken = self.shared.changed.wait_timeout(state, Duration::from_millis(100));
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Exchange for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn send(&self, to: usize, message: Message) -> Result<()> {
        let size = message.len();
        if size > MOST_IN_MESSAGE {
            return Err(Error::Value(format!("a message to rank {to}: found {size} bytes, expected at most {MOST_IN_MESSAGE}")));
        }
        self.wait_for(to, true, |state| {
            let free = state.sending == 0 || state.sending + size <= MOST_BYTES;
            free.then(|| state.sending += size)
        })?;
        let ended = |_| Error::Rank { rank: self.rank, problem: "has left the others".into() };
        self.commands.send(Command::Send { to, message }).map_err(ended)
    }

    fn receive(&self, from: usize) -> Result<Message> {
        self.wait_for(from, false, |state| {
            let peer = &mut state.peers[from];
            let message = peer.arrived.pop_front()?;
            peer.bytes -= message.len();
            Some(message)
        })
    }

    fn set_computing(&self, is_computing: bool) {
        self.shared.lock().is_computing = is_computing;
    }
}

/// Why the thread that owns MPI has not said that it is ready.
fn not_started(error: RecvTimeoutError, timeout: Duration) -> Error {
    let reason = match error {
        RecvTimeoutError::Timeout => {
            format!(" within {} s: a rank has not started, or cannot be reached", timeout.as_secs())
        }
        RecvTimeoutError::Disconnected => String::new(),
    };
    Error::Value(format!("MPI did not start{reason}"))
}

/// A send or receive that has begun. The buffer stays where it is until MPI says that it is done.
struct Pending<B> {
    request: ffi::MPI_Request,
    buffer: B,
}

impl<B> Pending<B> {
    fn is_done(&mut self) -> bool {
        let mut done = 0;
        // SAFETY: the request was begun by this thread and has not been found done before.
        unsafe { ffi::MPI_Test(&mut self.request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
        done != 0
    }
}

/// The thread that owns MPI.
struct Worker {
    /// Dropping it finalizes MPI, which a rank that fails must not do.
    universe: ManuallyDrop<Universe>,
    communicator: ffi::MPI_Comm,
    rank: usize,
    ranks: usize,
    shared: Arc<Shared>,
    orders: Receiver<Command>,
    outgoing: VecDeque<Pending<Message>>,
    beats: Vec<Pending<Box<[u8; BEAT_BYTES]>>>,
    /// By source, in order.
    incoming: Vec<VecDeque<Pending<Vec<u8>>>>,
    last_beat: Instant,
}

impl Worker {
    fn start(shared: Arc<Shared>, orders: Receiver<Command>, timeout: Duration) -> Result<Self> {
        let refused = |problem: &str| Error::Value(format!("MPI: {problem}"));
        let (universe, level) =
            initialize_with_threading(Threading::Funneled).ok_or_else(|| refused("it was started already"))?;
        if level < Threading::Funneled {
            return Err(refused("its library cannot be used in a program with threads"));
        }
        let world = universe.world();
        let (rank, ranks) = (world.rank() as usize, world.size() as usize);
        let now = Instant::now();
        let peer = |_| Peer { arrived: VecDeque::new(), bytes: 0, seen: now, waits_for: None, is_busy: false };
        *shared.lock() = State { peers: (0..ranks).map(peer).collect(), timeout, ..State::default() };
        Ok(Self {
            // SAFETY: a constant of the library, which has been initialized.
            communicator: unsafe { ffi::RSMPI_COMM_WORLD },
            incoming: (0..ranks).map(|_| VecDeque::new()).collect(),
            outgoing: VecDeque::new(),
            beats: Vec::new(),
            last_beat: now,
            universe: ManuallyDrop::new(universe),
            rank,
            ranks,
            shared,
            orders,
        })
    }

    /// Serves until told to finish; then all that was sent has left.
    fn run(mut self) {
        let (mut pause, mut finishing) = (PAUSES[0], false);
        loop {
            match self.orders.recv_timeout(pause) {
                Ok(Command::Send { to, message }) => self.begin(to, message),
                Ok(Command::Abort(status)) => self.universe.world().abort(status),
                Ok(Command::Finish) => finishing = true,
                // The handle was dropped without [`Mpi::finish`]: MPI must not be finalized while others go on.
                Err(RecvTimeoutError::Disconnected) if !finishing => self.universe.world().abort(1),
                Err(_) => {}
            }
            let moved = self.complete_sends() | self.receive() | self.listen();
            self.beat();
            if finishing && self.outgoing.is_empty() {
                break;
            }
            pause = if moved { PAUSES[0] } else { (2 * pause).min(PAUSES[1]) };
        }
        for beat in &mut self.beats {
            while !beat.is_done() {
                std::thread::sleep(PAUSES[1]);
            }
        }
        drop(ManuallyDrop::into_inner(self.universe));
    }

    fn begin(&mut self, to: usize, message: Message) {
        let request = self.isend(to, &message, DATA);
        self.outgoing.push_back(Pending { request, buffer: message });
    }

    fn isend(&self, to: usize, bytes: &[u8], tag: c_int) -> ffi::MPI_Request {
        // SAFETY: `bytes` is kept, unchanged and in its place, in a `Pending` until the request is done.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let (count, kind) = (bytes.len() as c_int, ffi::RSMPI_UINT8_T);
            ffi::MPI_Isend(bytes.as_ptr().cast(), count, kind, to as c_int, tag, self.communicator, &mut request);
            request
        }
    }

    fn complete_sends(&mut self) -> bool {
        let before = self.outgoing.len();
        let mut freed = 0;
        self.outgoing.retain_mut(|pending| {
            let done = pending.is_done();
            freed += if done { pending.buffer.len() } else { 0 };
            !done
        });
        if freed > 0 {
            self.shared.lock().sending -= freed;
            self.shared.changed.notify_all();
        }
        self.beats.retain_mut(|pending| !pending.is_done());
        self.outgoing.len() != before
    }

    /// Begins and completes receives. From each rank they are completed in the order in which they were sent.
    fn receive(&mut self) -> bool {
        let mut moved = false;
        for from in (0..self.ranks).filter(|rank| *rank != self.rank) {
            let waiting: usize = self.incoming[from].iter().map(|pending| pending.buffer.len()).sum();
            if self.shared.lock().peers[from].bytes + waiting < MOST_BYTES
                && let Some(pending) = self.matched(from as c_int, DATA)
            {
                self.incoming[from].push_back(pending);
                moved = true;
            }
            while let Some(pending) = self.incoming[from].pop_front_if(Pending::is_done) {
                let mut state = self.shared.lock();
                let peer = &mut state.peers[from];
                peer.bytes += pending.buffer.len();
                peer.seen = Instant::now();
                peer.arrived.push_back(Arc::new(pending.buffer));
                self.shared.changed.notify_all();
                moved = true;
            }
        }
        moved
    }

    /// Begins to receive a message that has been announced, if there is one.
    fn matched(&self, from: c_int, tag: c_int) -> Option<Pending<Vec<u8>>> {
        // SAFETY: the buffer has the size of the message and is kept in place, on the heap, until the request is done.
        unsafe {
            let (mut flag, mut count) = (0, 0);
            let mut message = ffi::RSMPI_MESSAGE_NULL;
            let mut status = std::mem::zeroed::<ffi::MPI_Status>();
            ffi::MPI_Improbe(from, tag, self.communicator, &mut flag, &mut message, &mut status);
            if flag == 0 {
                return None;
            }
            ffi::MPI_Get_count(&status, ffi::RSMPI_UINT8_T, &mut count);
            let mut buffer = vec![0u8; count as usize];
            let mut request = ffi::RSMPI_REQUEST_NULL;
            ffi::MPI_Imrecv(buffer.as_mut_ptr().cast(), count, ffi::RSMPI_UINT8_T, &mut message, &mut request);
            Some(Pending { request, buffer })
        }
    }

    /// Signs of life of the others.
    fn listen(&mut self) -> bool {
        let mut heard = false;
        for from in (0..self.ranks).filter(|rank| *rank != self.rank) {
            while let Some(mut pending) = self.matched(from as c_int, BEAT) {
                // So few bytes are here as soon as they are announced.
                while !pending.is_done() {
                    std::thread::yield_now();
                }
                let [rank @ .., busy]: [u8; BEAT_BYTES] = pending.buffer.try_into().unwrap_or([u8::MAX; BEAT_BYTES]);
                let rank = u32::from_le_bytes(rank) as usize;
                let peer = &mut self.shared.lock().peers[from];
                peer.seen = Instant::now();
                peer.waits_for = (rank < self.ranks).then_some(rank);
                peer.is_busy = busy == 1;
                heard = true;
            }
        }
        heard
    }

    fn beat(&mut self) {
        if self.last_beat.elapsed() < BEATS {
            return;
        }
        self.last_beat = Instant::now();
        let mut state = self.shared.lock();
        state.beaten = Some(self.last_beat);
        let waits_for = state.waits_for.map_or(u32::MAX, |rank| rank as u32);
        let mut bytes = [u8::from(state.is_busy); BEAT_BYTES];
        bytes[..4].copy_from_slice(&waits_for.to_le_bytes());
        drop(state);
        for to in (0..self.ranks).filter(|rank| *rank != self.rank) {
            let buffer = Box::new(bytes);
            let request = self.isend(to, &buffer[..], BEAT);
            self.beats.push(Pending { request, buffer });
        }
    }
}
