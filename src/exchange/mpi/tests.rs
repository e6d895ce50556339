use super::*;

const TIMEOUT: Duration = Duration::from_millis(300);

/// One of two ranks, without MPI: the other one was seen `silent` ago, and its messages fill what there is for them.
fn full(silent: Duration) -> (Mpi, Receiver<Command>) {
    // One that lives does so however slow this machine is.
    let now = Instant::now();
    let seen = if silent.is_zero() {
        now + Duration::from_secs(3600)
    } else {
        now.checked_sub(silent).expect("the machine has run for longer")
    };
    let peer = || Peer { arrived: VecDeque::new(), bytes: 0, seen, waits_for: None, is_busy: false };
    let state = State { peers: vec![peer(), peer()], sending: MOST_BYTES, timeout: TIMEOUT, ..State::default() };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    let (commands, orders) = channel();
    (Mpi { rank: 0, ranks: 2, host: "a".into(), shared, commands, thread: Mutex::new(None) }, orders)
}

fn message() -> Message {
    Arc::new(vec![0; 4])
}

#[test]
fn while_a_rank_computes_it_waits_for_room_at_one_that_lives() {
    let (mpi, _orders) = full(Duration::ZERO);
    mpi.set_computing(true);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| mpi.send(1, message()));
        std::thread::sleep(4 * TIMEOUT);
        assert!(!sender.is_finished(), "it may take as long as this rank computes");
        assert_eq!(mpi.shared.lock().waits_for, None, "it computes: nobody else is to blame");
        mpi.set_computing(false);
        let sent = sender.join().expect("no panic");
        assert!(matches!(sent, Err(Error::Rank { rank: 1, .. })), "now its time counts: {sent:?}");
    });
}

#[test]
fn a_silent_rank_and_one_that_owes_a_message_have_a_deadline_at_any_time() {
    let (mpi, _orders) = full(2 * SILENCE);
    mpi.set_computing(true);
    assert!(matches!(mpi.send(1, message()), Err(Error::Rank { rank: 1, .. })));
    let (mpi, _orders) = full(Duration::ZERO);
    mpi.set_computing(true);
    assert!(matches!(mpi.receive(1), Err(Error::Rank { rank: 1, .. })));
}

#[test]
fn a_message_that_mpi_cannot_count_is_refused() {
    let (mpi, _orders) = full(Duration::ZERO);
    let text = mpi.send(1, Arc::new(vec![0; MOST_IN_MESSAGE + 1])).expect_err("too long").to_string();
    assert_eq!(text, "a message to rank 1: found 2147483648 bytes, expected at most 2147483647");
}

#[test]
fn mpi_that_does_not_start_is_given_up() {
    let text = |error| not_started(error, Duration::from_secs(15)).to_string();
    let late = "MPI did not start within 15 s: a rank has not started, or cannot be reached";
    assert_eq!(text(RecvTimeoutError::Timeout), late);
    assert_eq!(text(RecvTimeoutError::Disconnected), "MPI did not start");
}
