//! Two "hosts" of two ranks each: a network namespace for each rank, with the name of its host, joined by a bridge. Only root may make them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Job, LIMIT, assert_same, begin, kill, mpirun, newest, process_of, program, run, turn};
use crate::common::prepared;

/// Removed again at the end, also of a test that fails.
struct Hosts;

/// Names that nothing else on the machine has.
const BRIDGE: &str = "polytapebr";
const NAMES: [&str; 4] = ["polytape1", "polytape2", "polytape3", "polytape4"];
/// Of the first two ranks and of the last two.
const HOSTS: [&str; 2] = ["left", "right"];
const NETWORK: &str = "10.213.77";

fn ip(args: &str) -> bool {
    let output = Command::new("ip").args(args.split(' ')).output();
    output.is_ok_and(|output| output.status.success())
}

/// What runs in a namespace.
fn processes(name: &str) -> Vec<u32> {
    let Ok(output) = Command::new("ip").args(["netns", "pids", name]).output() else { return Vec::new() };
    String::from_utf8_lossy(&output.stdout).lines().filter_map(|line| line.parse().ok()).collect()
}

/// Whether a rank runs in a namespace; its daemon does not count.
fn has_rank(name: &str) -> bool {
    let is_rank = |process: &u32| fs::read_to_string(format!("/proc/{process}/comm")).is_ok_and(|comm| comm.trim() == "llama_pc");
    processes(name).iter().any(is_rank)
}

impl Hosts {
    /// `None`, and a line that says so, where this user may not.
    fn new() -> Option<Self> {
        drop(Self);
        if !ip(&format!("netns add {}", NAMES[0])) {
            eprintln!("this user may not make network namespaces, so ranks are tested on loopback only");
            return None;
        }
        let hosts = Self;
        let mut commands: Vec<String> = NAMES[1..].iter().map(|name| format!("netns add {name}")).collect();
        commands.extend([
            format!("link add {BRIDGE} type bridge"),
            format!("addr add {NETWORK}.254/24 dev {BRIDGE}"),
            format!("link set {BRIDGE} up"),
        ]);
        for (number, name) in (1..).zip(NAMES) {
            commands.extend([
                format!("link add {name} type veth peer name eth0 netns {name}"),
                format!("link set {name} master {BRIDGE} up"),
                format!("-n {name} addr add {NETWORK}.{number}/24 dev eth0"),
                format!("-n {name} link set eth0 up"),
                format!("-n {name} link set lo up"),
            ]);
        }
        for command in commands {
            assert!(ip(&command), "ip {command}");
        }
        Some(hosts)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in NAMES {
            // One may have ended meanwhile.
            for process in processes(name) {
                let _ = Command::new("sh").args(["-c", &format!("kill -KILL {process}")]).output();
            }
            // The link first: a namespace keeps its end for as long as anything in it is still ending.
            ip(&format!("link del {name}"));
            ip(&format!("netns del {name}"));
        }
        ip(&format!("link del {BRIDGE}"));
    }
}

/// What `mpirun` calls instead of ssh.
fn agent(folder: &Path) -> String {
    let path = folder.join("agent");
    let ([left, right], [one, two, ..]) = (HOSTS, NAMES);
    let host = format!("case $1 in {one} | {two}) host={left} ;; *) host={right} ;; esac");
    // Two daemons of a host name would make the same session folder.
    let own = format!("export TMPDIR={}/$name\nmkdir -p \"$TMPDIR\"", folder.display());
    let enter = "exec ip netns exec \"$name\" unshare --uts sh -c \"hostname $host; $*\"";
    fs::write(&path, format!("#!/bin/sh\nname=$1\n{host}\nshift\n{own}\n{enter}\n")).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
    path.display().to_string()
}

fn on_hosts(folder: &Path, args: &[&str]) -> Job {
    let (network, hosts) = (format!("{NETWORK}.0/24"), NAMES.map(|name| format!("{name}:1")).join(","));
    let agent = agent(folder);
    let launch = [
        "--mca",
        "plm_rsh_agent",
        &agent,
        "--mca",
        "oob_tcp_if_include",
        &network,
        "--mca",
        "btl_tcp_if_include",
        &network,
        "--host",
        &hosts,
        "-n",
        "4",
        program(),
    ];
    Job::start(mpirun(folder, &[&launch, args].concat()))
}

#[test]
fn a_run_on_two_hosts_survives_a_killed_rank() {
    let _turn = turn();
    let folder = prepared();
    let Some(_hosts) = Hosts::new() else { return };
    let mut job = on_hosts(folder.path(), &begin("run", &["train.steps=100000"]));
    job.wait_for(&folder.path().join("run/checkpoints/step-2"));
    kill("KILL", process_of(folder.path(), "run", 3));
    let (status, text) = job.end();
    assert!(status != Some(0) && text.contains("rank 3") && text.contains(NAMES[3]), "{text}");
    assert!(text.contains("newest checkpoint: step-"), "{text}");
    let newest = newest(&folder.path().join("run"));
    let steps = |more: u64| (newest + more).to_string();
    let (status, text) = on_hosts(folder.path(), &["train", "--resume", "run", "--steps", &steps(1)]).end();
    assert_eq!(status, Some(0), "{text}");
    run(folder.path(), "2", &["train", "--resume", "run", "--steps", &steps(2)]);
    run(folder.path(), "1", &["train", "--resume", "run", "--steps", &steps(3)]);
    // Ends are due for a validation: the undisturbed run has the same ones.
    run(folder.path(), "1", &begin("whole", &[&format!("train.steps={}", newest + 1)]));
    for more in [2, 3] {
        run(folder.path(), "1", &["train", "--resume", "whole", "--steps", &steps(more)]);
    }
    assert_same(folder.path(), "whole", "run", newest + 3);
}

#[test]
fn a_host_that_vanishes_ends_the_ranks_of_both() {
    let _turn = turn();
    let folder = prepared();
    let Some(_hosts) = Hosts::new() else { return };
    let args = [&["train", "--patience", "6s"], &begin("run", &["train.steps=100000"])[1..]].concat();
    let mut job = on_hosts(folder.path(), &args);
    job.wait_for(&folder.path().join("run/checkpoints/step-2"));
    for name in &NAMES[2..] {
        assert!(ip(&format!("link set {name} down")));
    }
    let started = Instant::now();
    while !job.text().contains("to resume: ") || NAMES.into_iter().any(has_rank) {
        assert!(started.elapsed() < LIMIT, "{}", job.text());
        std::thread::sleep(Duration::from_millis(50));
    }
    let text = job.text();
    let line = text.lines().find(|line| line.starts_with("error: rank ")).unwrap_or_default();
    assert!(line.contains("(host right)") && line.contains(": step ") && line.contains("sent nothing for"), "{text}");
    // It would wait for the daemons of that host until TCP gives up.
    job.signal("KILL");
    job.end();
    let newest = newest(&folder.path().join("run"));
    run(folder.path(), "2", &["train", "--resume", "run", "--steps", &(newest + 1).to_string()]);
}
