//! Checkpoints on disk: what is written is what is read, and a failed save leaves nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use polytape::exchange::{Exchange, ExchangeOptions, Local, in_process};
use polytape::optim::{AdamConfig, AdamW};
use polytape::{Gpu, GpuOptions, Params, Role, Tensor, Trainer};

use super::*;
use crate::config::Config;
use crate::run::paths;
use crate::terminal::failure::Failure;

fn gpu() -> Gpu {
    Gpu::open(&GpuOptions { warn: |_| (), ..Default::default() }).expect("the tests need an adapter, a software one at least")
}

/// Parameters of which one takes several pieces and some take one together.
fn params(gpu: &Gpu) -> Params {
    let mut params = Params::new(gpu);
    for (name, rows, columns) in [("b", 3, 5), ("a", 4100, 1024), ("c", 1, 1)] {
        let tensor = Tensor::normal(gpu, &[rows, columns], 1.0, rows as u64).expect("a tensor");
        params.add(name, Role::Matrix, tensor).expect("a new name");
    }
    params
}

fn trainer(gpu: &Gpu) -> Trainer {
    Trainer::resume(params(gpu), None, Box::new(AdamW::new(AdamConfig::default())), 1.0)
}

#[test]
fn a_saved_checkpoint_holds_the_values_under_their_names() {
    let (gpu, folder) = (gpu(), tempfile::tempdir().expect("a folder"));
    let trainer = trainer(&gpu);
    let params = &trainer.params;
    let state = State { step: 7, position: u64::MAX, ..State::default() };
    let mut writer = Writer::new(folder.path(), true, 1, None);
    writer.save(&trainer, &State { step: 3, ..State::default() }, Failure::from).expect("it is begun");
    writer.save(&trainer, &state, Failure::from).expect("it is begun");
    writer.wait().expect("it is written");
    assert_eq!(paths::checkpoints(folder.path()).expect("a list"), [7], "the older one is removed");
    let saved = Saved::newest(folder.path()).expect("it is whole").expect("it is there");
    assert_eq!(saved.state, state);
    let file = Path::new("config.toml");
    check_weights(saved.folder(), &Config::default(), file).expect("an older checkpoint, which recorded no configuration");
    let path = saved.verify(MODEL).expect("it is whole");
    // The library's reader, by way of the safetensors crate.
    let file = polytape::safetensors::Reader::open(&path).expect("safetensors");
    assert_eq!(file.names(), ["a", "b", "c"]);
    for (_, param) in params.iter() {
        let read = file.tensor_of(&gpu, &param.name, param.tensor.shape()).expect("a tensor");
        assert!(read.to_vec().expect("values") == param.tensor.to_vec().expect("values"), "{}", param.name);
    }
    let empty = polytape::safetensors::Reader::open(&saved.verify(OPTIMIZER).expect("it is whole")).expect("safetensors");
    assert!(empty.names().is_empty(), "no step, no state");
}

#[test]
fn values_that_are_not_finite_are_not_saved() {
    let (gpu, folder) = (gpu(), tempfile::tempdir().expect("a folder"));
    let mut trainer = trainer(&gpu);
    let mut writer = Writer::new(folder.path(), true, 3, None);
    writer.save(&trainer, &State { step: 1, ..State::default() }, Failure::from).expect("it is begun");
    let id = trainer.params.id("b").expect("a name");
    let bad = Tensor::from_slice(&gpu, &[f32::NAN; 15], &[3, 5]).expect("a tensor");
    trainer.params.set(id, bad).expect("its shape");
    let failed = writer.save(&trainer, &State { step: 2, ..State::default() }, Failure::from).and_then(|()| writer.wait());
    let text = failed.expect_err("not finite").to_string();
    assert_eq!(text, "step 2: found NaN in b, expected finite numbers; the checkpoint was not written");
    assert_eq!(paths::checkpoints(folder.path()).expect("a list"), [1]);
    assert!(!folder.path().join("checkpoints/step-2.partial").exists());
}

#[test]
fn a_rank_that_keeps_its_part_is_explained() {
    let (gpu, folder) = (gpu(), tempfile::tempdir().expect("a folder"));
    let save = |local: Local| {
        let is_first = local.rank() == 0;
        let trainer = trainer(&gpu).with_replicas(2).expect("a power of two");
        let trainer = trainer.on_ranks(Arc::new(local), ExchangeOptions::default()).expect("a rank");
        let mut writer = Writer::new(folder.path(), is_first, 1, None);
        let explain = |error: polytape::Error| Failure::other(format!("explained: {error}"));
        // The second ends instead of sending what it owns.
        if is_first { writer.save(&trainer, &State::default(), explain) } else { Ok(()) }
    };
    let saved: Vec<Result<(), Failure>> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            in_process(2, Duration::from_secs(60)).into_iter().map(|local| scope.spawn(|| save(local))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(saved[0].as_ref().expect_err("a part is missing").to_string(), "explained: rank 1 has ended");
    assert!(paths::checkpoints(folder.path()).expect("a list").is_empty());
}
